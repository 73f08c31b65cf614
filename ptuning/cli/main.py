"""The command line: parses, calls, prints; no logic of its own.

Exit status: 0 done; 2 a mistake of the user's, told in one line on stderr; 130 interrupted.
"""

import argparse
import json
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ptuning.errors import ConfigError, DataError, ModelError, PromptError, PTuningError

# transformers imports torchao where it is installed, which then tells of kernels for machines other than this one.
_NOISY = ("torchao", "torch.utils._pytree")
_DESCRIPTION = "Soft-prompt tuning for frozen language models."


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, "a command line as --help shows it", f"See {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if given[:1] == ["train"]:
            _train(given[1:])
        else:
            parsed = _parser().parse_args(given)
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PTuningError as error:
        print(f"ptuning: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"ptuning: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ptuning", description=_DESCRIPTION)
    commands = parser.add_subparsers(
        required=True, metavar="train | evaluate | predict | inspect", parser_class=_Parser
    )
    commands.add_parser("train", help="train a soft prompt (ptuning train --help shows every setting)")

    evaluate = _prompt_command(commands, "evaluate", "how good a prompt is on rows with answers", _evaluate)
    evaluate.add_argument("--data", help="rows; by default those the prompt was trained with: test, else validation")
    evaluate.add_argument("--baseline", action="store_true", help="also the same words without the soft prompt")

    predict = _prompt_command(commands, "predict", "answer a text, or each row of a file", _predict)
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="the text, for a template with one column")
    source.add_argument("--data", help="rows to answer, one answer a row")
    predict.add_argument("--max-new-tokens", type=_positive, default=50, help="length of written answers (default: 50)")
    predict.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends written answers; repeatable")

    for command in (evaluate, predict):
        command.add_argument("--batch-size", type=_positive, default=32, help="rows read at once (default: 32)")
        command.add_argument("--max-batch-tokens", type=_positive, help="tokens read at once (default: no limit)")

    _add_inspect(commands)
    return parser


def _add_inspect(commands: Any) -> None:
    about = "what a prompt decodes to, and how much of that can be believed"
    inspect = _prompt_command(commands, "inspect", about, _inspect)
    inspect.add_argument("--data", help="rows with answers, on which the verdict rests; without them nothing is judged")
    inspect.add_argument("--max-rows", type=_positive, default=500, help="rows of --data, at random (default: 500)")
    inspect.add_argument("--human", metavar="TEXT", help="a person's prompt to measure beside it")
    inspect.add_argument("--html", metavar="FILE", help="write the report as one HTML file")
    inspect.add_argument(
        "--run",
        dest="run_directory",
        metavar="DIR",
        help="the training run (default: the directory that PROMPT_DIR is in)",
    )
    inspect.add_argument("--top-k", type=int, default=5, help="neighbours a virtual token (default: 5)")
    metrics = ("cosine", "centred_cosine", "l2", "csls")
    inspect.add_argument("--metric", choices=metrics, default="cosine", help="what near means (default: cosine)")
    inspect.add_argument("--input", help="for a conditioned prompt: the text whose own prompt is shown")
    inspect.add_argument("--verbalise", action="store_true", help="also ask the model to put the prompt into words")
    inspect.add_argument("--wayward", metavar="TEXT", help="also tune prompts whose decoding is pulled to this text")
    inspect.add_argument("--batch-size", type=_positive, default=32, help="rows read at once (default: 32)")
    inspect.add_argument("--max-batch-tokens", type=_positive, help="tokens read at once (default: no limit)")


def _prompt_command(commands: Any, name: str, help_: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_, description=help_)
    parser.add_argument("prompt", metavar="PROMPT_DIR", help="a saved prompt's directory")
    parser.add_argument("--model", help="the base model; by default the one the prompt names")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--quantization", default="none", choices=("none", "int8"), help="of the base's weights")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; by default the first accelerator")
    parser.add_argument("--allow-other-base", action="store_true", help="take a base the prompt was not tuned on")
    parser.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _train(arguments: list[str]) -> None:
    from ptuning.config import RunConfig, parser

    flags = _Parser(prog="ptuning train", add_help=False, allow_abbrev=False)
    flags.add_argument("--config")
    flags.add_argument("--resume", action="store_true")
    parsed, overrides = flags.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        parser().print_help()
        return
    print_config = "--print_config" in overrides
    overrides = [each for each in overrides if each != "--print_config"]
    if parsed.config is None:
        raise ConfigError("ptuning train without --config", "a config file", "See configs/ for examples")
    run = RunConfig.from_yaml(parsed.config, overrides)
    if print_config:
        print(run.to_yaml(), end="")
        return
    _report(run, parsed.resume)


def _report(run: Any, resume: bool) -> None:
    from accelerate import PartialState

    from ptuning.prompts import results_table
    from ptuning.training import train

    is_main_process = PartialState(cpu=run.model.device == "cpu").is_main_process
    result = train(run, resume)
    if not is_main_process:
        return
    for line in results_table(result.metrics["results"]):
        print(line)
    print(f"saved: {result.directory}")
    if result.prompt.not_peft:
        print(result.prompt.not_peft)


@contextmanager
def _base_of(parsed: argparse.Namespace) -> Iterator[str]:
    """The base model to load; where it cannot be, says that another can be given."""
    from ptuning.prompts import SoftPrompt

    base = parsed.model or SoftPrompt.load(parsed.prompt).base_name
    if base is None:
        raise PromptError(f"{parsed.prompt} names no base model", "a base model", "Give one with --model")
    try:
        yield base
    except ModelError as error:
        if parsed.model:
            raise
        hint = f"{error.remedy}, or give the base that {parsed.prompt} was tuned on with --model"
        raise ModelError(error.received, error.expected, hint) from error


def _load(parsed: argparse.Namespace) -> Any:
    from ptuning.inference import PromptedLM

    with _base_of(parsed) as base:
        return PromptedLM.from_pretrained(
            *(base, {"prompt": parsed.prompt}, parsed.dtype, parsed.device, parsed.allow_other_base),
            trust_remote_code=parsed.trust_remote_code,
            quantization=parsed.quantization,
            batch_size=parsed.batch_size,
            max_batch_tokens=parsed.max_batch_tokens,
            progress=parsed.data is not None,
        )


def _load_embeddings(parsed: argparse.Namespace) -> tuple[Any, Any]:
    """The prompt, and of its base model the embeddings alone."""
    from ptuning.inference import PromptLibrary, as_prompt, base_revision
    from ptuning.model import Backbone

    with _base_of(parsed) as base:
        revision = base_revision(prompts := {"prompt": as_prompt(parsed.prompt)}, base)
        backbone = Backbone.embeddings_of(base, parsed.dtype, parsed.device, revision, parsed.trust_remote_code)
        return PromptLibrary(backbone, prompts, parsed.allow_other_base)["prompt"], backbone


def _evaluate(parsed: argparse.Namespace) -> None:
    from ptuning.data import read_rows
    from ptuning.evaluation import evaluate_rows
    from ptuning.prompts import results_table

    lm = _load(parsed)
    prompt, task = lm.prompts["prompt"], lm.task("prompt")
    used = prompt.training.get("data", {})
    split = "test" if parsed.data or used.get("test") else "validation"
    source = parsed.data or used.get(split)
    if source is None:
        raise DataError("no rows to evaluate on", "a data file with answers", "Give one with --data")
    rows, limits = read_rows(source, split, task.columns), (parsed.batch_size, parsed.baseline, parsed.max_batch_tokens)
    results = evaluate_rows(lm.backbone, prompt.on(lm.backbone.device), task, rows, *limits)
    measured = {name: metrics.as_dict() for name, metrics in results.items()}
    if parsed.json:
        print(json.dumps({"prompt": parsed.prompt, "data": source, "results": measured}))
    else:
        print("\n".join(results_table(measured)))


def _predict(parsed: argparse.Namespace) -> None:
    lm = _load(parsed)
    rows = _rows(parsed, lm)
    if lm.task("prompt").is_classification:
        answers = [{"label": each.label, "scores": each.scores} for each in lm.classify(rows)]
        lines = [f"{each['label']} {each['scores'][each['label']]:.3f}" for each in answers]
    else:
        lines = lm.generate(rows, max_new_tokens=parsed.max_new_tokens, stop_strings=parsed.stop)
        answers = [{"text": text} for text in lines]
    print(json.dumps({"answers": answers}) if parsed.json else "\n".join(" ".join(line.split()) for line in lines))


def _rows(parsed: argparse.Namespace, lm: Any) -> list[Any]:
    """The rows of --data, or the one of --input."""
    columns = lm.columns("prompt")
    if parsed.data is not None:
        from ptuning.data import read_rows

        return [row.values for row in read_rows(parsed.data, "test", columns)]
    return [_one_row(parsed.input, columns)]


def _one_row(text: str, columns: Sequence[str]) -> dict[str, str]:
    """The row of a template with one column."""
    if len(columns) != 1:
        raise DataError(f"--input for a template with the columns {columns}", "one column", "Use --data")
    return {columns[0]: text}


def _inspect(parsed: argparse.Namespace) -> None:
    from ptuning.inspection import inspect, lines, table_lines, write_page

    if parsed.wayward is not None and parsed.data is None:
        raise DataError("--wayward without --data", "rows to measure on", "Give them with --data")
    if parsed.data is None and not parsed.verbalise:
        prompt, backbone = _load_embeddings(parsed)
    else:
        lm = _load(parsed)
        prompt, backbone = lm.prompts["prompt"], lm.backbone
    rows, train = _sample(parsed, prompt), _require_possible(parsed, prompt, backbone)
    report = inspect(
        *(
            prompt,
            backbone,
            rows and [row.values for row in rows],
            parsed.top_k,
            parsed.metric,
            _own_row(parsed, prompt, backbone),
        ),
        human=parsed.human,
        run=parsed.run_directory or _run_of(parsed.prompt),
        batch_size=parsed.batch_size,
        max_batch_tokens=parsed.max_batch_tokens,
        progress=parsed.data is not None,
    )
    if not parsed.json:
        print("\n".join(lines(report)), flush=True)
    if parsed.html:
        write_page(report, parsed.html, parsed.prompt)
    more = _asked_for(parsed, prompt, backbone, train, rows)
    if parsed.json:
        print(json.dumps(report.as_dict() | {name: table.as_dict() for name, table in more.items()}))
        return
    for name, table in more.items():
        print("\n".join(["", name, *table_lines(table)]))
    if parsed.html:
        print(f"saved: {parsed.html}")


def _require_possible(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> list[Any]:
    """Finds what would fail after minutes before they are spent; gives the rows that --wayward tunes on."""
    from ptuning.data import read_rows
    from ptuning.files import require_writable
    from ptuning.inspection import require_layers

    if parsed.html and Path(parsed.html).is_dir():
        raise DataError(f"--html {parsed.html}, a directory", "a file", "Add a name, such as report.html")
    if parsed.html:
        require_writable(Path(parsed.html))
    if parsed.verbalise:
        require_layers(backbone)
    if parsed.wayward is None:
        return []
    if not backbone.tokenizer(parsed.wayward, add_special_tokens=False).input_ids:
        raise DataError(f"--wayward {parsed.wayward!r}", "a text of one token or more", "Write the text to pull to")
    source = prompt.training.get("data", {}).get("train")
    if source is None:
        raise DataError(f"--wayward for {parsed.prompt}, which names no training rows", "such rows", "Leave it out")
    return read_rows(source, "train", prompt.task.columns)


def _run_of(prompt: str) -> Path | None:
    """The training run that a prompt's directory is in; None where it is in none."""
    from ptuning.training import RunDirectory

    found = Path(prompt).absolute().parent
    return found if RunDirectory(found).snapshots() else None


def _sample(parsed: argparse.Namespace, prompt: Any) -> list[Any] | None:
    """Rows of --data with answers, the same random ones each time; None without --data."""
    from ptuning.data import read_rows

    if parsed.data is None:
        if parsed.human is not None:
            raise DataError("--human without --data", "rows to measure it on", "Give them with --data")
        return None
    if prompt.task is None:
        raise PromptError(f"--data for {parsed.prompt}, which names no task", "no rows", "Leave --data out")
    rows = read_rows(parsed.data, "test", prompt.task.columns)
    return random.Random(0).sample(rows, min(parsed.max_rows, len(rows)))


def _own_row(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> dict[str, str] | None:
    """The row of --input."""
    if parsed.input is None:
        return None
    return _one_row(parsed.input, backbone.coder(prompt.task).columns if prompt.task else ("text",))


def _asked_for(parsed: argparse.Namespace, prompt: Any, backbone: Any, train: Any, rows: Any) -> dict[str, Any]:
    """The tables of what is made only where it is asked for."""
    found = {}
    if parsed.verbalise:
        from ptuning.inspection import verbalise

        found["verbalise"] = verbalise(prompt, backbone)
    if parsed.wayward is not None:
        from ptuning.inspection import wayward

        found["wayward"] = wayward(prompt, backbone, train, rows, parsed.wayward).table
    return found


if __name__ == "__main__":
    sys.exit(main())
