"""A device without enough memory: auto finds a limit and makes the same steps; a run that cannot go on says so."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import tiny_backbone
from running import launched, log, trained

import ptuning
from ptuning.cli import main as cli
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import OutOfMemoryError, TrainingError
from ptuning.forward import objective
from ptuning.model.causal import CausalBackbone
from ptuning.prompts import encoders, initializers
from ptuning.training import graphs, prompt_steps
from ptuning.training.backward import backward_in_parts
from ptuning.training.memory import TokenLimit
from ptuning.training.run_directory import RunDirectory

AUTO = "--train.max_batch_tokens=auto"
NO_VALIDATION = ("--data.validation=null", "--data.validation_split=0")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
FakeMemory = Callable[..., list[int]]


@pytest.fixture
def memory_of(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """Gives the model memory for some tokens; returns the tokens of each run that did not fit."""
    run = CausalBackbone.run

    def memory_of(
        num_tokens: float,
        is_lacking: Callable[[], bool] = lambda: True,
        error: Exception = NO_MEMORY,
    ) -> list[int]:
        refused = []

        def run_if_it_fits(self, **inputs):
            size = inputs["inputs_embeds"].shape[:2].numel()
            if size > num_tokens and is_lacking():
                refused.append(size)
                raise error
            return run(self, **inputs)

        monkeypatch.setattr(CausalBackbone, "run", run_if_it_fits)
        return refused

    return memory_of


def limit_in(directory: Path) -> int | None:
    state = RunDirectory(directory).load_checkpoint("last")
    assert state is not None
    return state["progress"]["max_batch_tokens"]


def test_auto_makes_the_same_steps_within_the_limit_it_finds(
    run_config: Path, tmp_path: Path, memory_of: FakeMemory, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(run_config, "--train.max_steps=4", f"--train.output_dir={tmp_path}/whole")
    refused = memory_of(60)
    parts = trained(run_config, "--train.max_steps=4", AUTO)
    assert refused
    torch.testing.assert_close(parts.prompt.embeddings_PH, whole.prompt.embeddings_PH, rtol=0, atol=1e-5)
    for ours, theirs in zip(log(tmp_path / "run"), log(tmp_path / "whole"), strict=True):
        assert {name: ours.get(name) for name in ("loss", "grad_norm", "eval_loss", "eval_accuracy")} == pytest.approx(
            {name: theirs.get(name) for name in ("loss", "grad_norm", "eval_loss", "eval_accuracy")}, abs=1e-4
        )
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    lines = [line for line in lines if "not shown to be better" not in line]  # of both runs
    limits = [int(each) for line in lines for each in re.findall(r"from here on at most (\d+) tokens", line)]
    assert len(limits) == len(lines) == len(refused)
    assert limits == sorted(limits, reverse=True)
    assert limit_in(tmp_path / "run") == limits[-1]


def test_resumed_run_starts_from_the_limit_that_was_found(
    run_config: Path, tmp_path: Path, memory_of: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, *_: object) -> None:
        raise RuntimeError("killed")

    refused = memory_of(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptuning.training.run.Trainer._validate", stop)
        with pytest.raises(RuntimeError, match="killed"):
            trained(run_config, AUTO)
    assert refused
    refused.clear()
    assert limit_in(tmp_path / "run") is not None
    trained(run_config, AUTO, "--train.max_steps=12", resume=True)
    assert not refused


def test_gradient_is_the_same_wherever_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward or the backward pass of any part; what the try has gathered is thrown away."""
    backbone = tiny_backbone()
    texts = ["the film", "a very dull plot and very bad film", "bright", "good", "dull and bad", "a bad film"]
    examples = backbone.coder(Task("{prompt:5}the {text} is")).encode(
        [Row({"text": text, "label": " good"}, "row") for text in texts]
    )
    for kind in ("residual", "conditioned"):
        torch.manual_seed(0)
        encoder = encoders.build(kind, initializers.from_vocabulary(backbone.vocabulary_VH.float(), 5), 16)
        loss = (
            objective.loss_sum(backbone, encoder(), backbone.collate(examples))
            if kind == "residual"
            else (objective.loss_sum(backbone, encoder, backbone.collate(examples)))
        )
        (loss * 0.5).backward()
        expected = {name: each.grad.clone() for name, each in encoder.named_parameters()}
        encoder.zero_grad()
        for fails_at in ((0,), (0, 1), (0, 2)):
            steps = _steps(backbone, examples)
            calls, loss_of = iter(range(100)), objective.loss_sum

            def failing(*arguments, calls=calls, fails_at=fails_at, loss_of=loss_of):
                loss = loss_of(*arguments)
                if next(calls) in fails_at:
                    loss.register_hook(_no_memory)
                return loss

            def failing_pass(*arguments, calls=calls, fails_at=fails_at, run=graphs.loss_and_gradient):
                if next(calls) in fails_at:
                    raise NO_MEMORY
                return run(*arguments)

            monkeypatch.setattr("ptuning.training.backward.loss_sum", failing)
            monkeypatch.setattr(graphs, "loss_and_gradient", failing_pass)
            total = steps(0).add_gradients(encoder, 0.5)
            monkeypatch.undo()
            assert float(total) == pytest.approx(loss.item(), rel=1e-5)
            assert steps.limit.num_tokens
            for name, each in encoder.named_parameters():
                torch.testing.assert_close(each.grad, expected[name], rtol=1e-5, atol=1e-5)
            encoder.zero_grad()


def test_what_a_failed_try_gathered_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    rows = [Row({"text": text, "label": " good"}, "row") for text in ("the film", "dull and bad", "bright") * 2]
    examples = backbone.coder(Task("{prompt:5}the {text} is")).encode(rows)
    encoder = encoders.build("mlp", initializers.from_vocabulary(backbone.vocabulary_VH.float(), 5), 16)
    objective.loss_sum(backbone, encoder(), backbone.collate(examples)).backward()
    expected = [each.grad.clone() for each in encoder.parameters()]
    encoder.zero_grad()
    passes: list[object] = []
    next(iter(encoder.parameters())).register_post_accumulate_grad_hook(passes.append)
    limits: list[int | None] = []

    def failing(*arguments, max_batch_tokens, **options):
        limits.append(max_batch_tokens)
        total = backward_in_parts(*arguments, max_batch_tokens=max_batch_tokens, **options)
        if len(limits) < 3:
            num_rows = len(examples) // len(limits)
            raise OutOfMemoryError(num_rows, num_rows * max(map(len, examples)))
        return total

    monkeypatch.setattr(prompt_steps, "backward_in_parts", failing)
    _steps(backbone, examples)(0).add_gradients(encoder, 1.0)
    assert limits[0] is None
    assert limits[1] == 6 * max(map(len, examples)) // 2
    assert len(limits) == 3
    assert len(passes) == 1
    for each, gradient in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=1e-5, atol=1e-5)


def _no_memory(_: torch.Tensor) -> None:
    raise NO_MEMORY


def _steps(backbone, examples):
    from accelerate import Accelerator

    from ptuning.config import TrainConfig

    settings = TrainConfig("none", max_batch_tokens="auto", per_device_train_batch_size=len(examples))
    return prompt_steps.PromptSteps(backbone, examples, settings, Accelerator(cpu=True))


def test_run_without_memory_says_what_to_set_and_goes_on_with_it(
    run_config: Path, tmp_path: Path, memory_of: FakeMemory, capsys: pytest.CaptureFixture
) -> None:
    whole = trained(run_config, f"--train.output_dir={tmp_path}/whole")
    runs = iter(range(1000))
    refused = memory_of(60, lambda: next(runs) >= 9)  # there is room at first
    arguments = ["train", "--config", str(run_config), "--train.eval_steps=12"]
    assert cli.main(arguments) == 2
    assert refused
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"ptuning: step 8: out of memory with 8 rows \(\d+ tokens\) at once; .*run keeps its checkpoint of step 6; "
        r"expected rows that fit into the device's memory\. Set train\.max_batch_tokens: auto \(or \d+\) or "
        r"train\.gradient_checkpointing: true and go on with --resume, or start a new run with model\.quantization: "
        r"int8 or int4 or a lower data\.max_length\.",
        told,
    ), told
    state = RunDirectory(tmp_path / "run").load_checkpoint("last")
    assert state is not None
    assert state["progress"]["step"] == 6
    for setting in ("max_batch_tokens=60", "max_batch_tokens=auto", "gradient_checkpointing=true"):
        memory_of(60 if "tokens" in setting else float("inf"))
        arguments = ["train", "--config", str(run_config), "--train.eval_steps=12", f"--train.{setting}", "--resume"]
        assert cli.main(arguments) == 0
        result = ptuning.SoftPrompt.load(tmp_path / "run" / "prompt")
        torch.testing.assert_close(result.embeddings_PH, whole.prompt.embeddings_PH, rtol=0, atol=1e-4)
        (tmp_path / "run" / "metrics.json").unlink()
        RunDirectory(tmp_path / "run").save_checkpoint("last", state)


def test_row_that_does_not_fit_alone_ends_the_run(run_config: Path, memory_of: FakeMemory) -> None:
    memory_of(5)
    with pytest.raises(
        TrainingError,
        match=r"step 1: out of memory with 1 row \(\d+ tokens\) at once; .* keeps no checkpoint yet; .*\. "
        r"Set train.gradient_checkpointing: true and start again, or start a new run with",
    ):
        trained(run_config, AUTO, *NO_VALIDATION)
    with pytest.raises(TrainingError, match=r"\. Start a new run with model.quantization: int4 or a lower data"):
        trained(run_config, AUTO, *NO_VALIDATION, "--train.gradient_checkpointing=true", "--model.quantization=int8")


def test_evaluation_without_memory_halves_the_limit_or_says_so(run_config: Path, memory_of: FakeMemory) -> None:
    expected = trained(run_config, f"--train.output_dir={run_config.parent}/whole").metrics["results"]
    memory_of(50, lambda: not torch.is_grad_enabled())
    with pytest.raises(TrainingError, match="the evaluation before the first step: out of memory with 16 rows"):
        trained(run_config)
    last = run_config.parent / "run" / "checkpoints" / "last.pt"
    memory_of(50, lambda: not torch.is_grad_enabled() and last.exists())
    with pytest.raises(
        TrainingError,
        match=r"the evaluation after step 4: out of memory with 16 rows .* of step 3; .*\. Set train.max_batch_tokens: "
        r"auto \(or \d+\) or train.per_device_eval_batch_size: 8 and go on with --resume, or start a new",
    ):
        trained(run_config)
    found = trained(run_config, AUTO, resume=True).metrics["results"]
    for name, values in expected.items():
        assert found[name]["loss"] == pytest.approx(values["loss"], abs=1e-4)


def test_process_that_lacks_memory_keeps_in_step_with_the_other(run_config: Path, tmp_path: Path) -> None:
    options = ["--train.per_device_train_batch_size=4", "--train.max_steps=4", "--prompt.encoder=mlp"]
    one = trained(run_config, *options, "--train.gradient_accumulation_steps=2", f"--train.output_dir={tmp_path}/one")
    script = tmp_path / "lacking.py"
    script.write_text("""
import os, sys, torch
from ptuning.cli.main import main
from ptuning.model.causal import CausalBackbone
run = CausalBackbone.run
def run_if_it_fits(self, **inputs):
    if os.environ["RANK"] == "1" and "inputs_embeds" in inputs and inputs["inputs_embeds"].shape[:2].numel() > 30:
        raise torch.OutOfMemoryError("out of memory")
    return run(self, **inputs)
CausalBackbone.run = run_if_it_fits
sys.exit(main(["train", *sys.argv[1:]]))
""")
    result = launched("--config", str(run_config), *options, AUTO, f"--train.output_dir={tmp_path}/two", script=script)
    assert result.returncode == 0, result.stderr
    assert "from here on at most" in result.stderr
    two = ptuning.SoftPrompt.load(tmp_path / "two" / "prompt")
    torch.testing.assert_close(two.embeddings_PH, one.prompt.embeddings_PH, rtol=0, atol=1e-5)
    assert two.results["soft prompt"]["num_rows"] == 24


def test_limit_never_falls_below_a_row_and_does_not_try_the_same_twice() -> None:
    limit, tries = TokenLimit("auto"), []

    def work(most: int | None) -> None:
        tries.append(most)
        raise OutOfMemoryError(2, 40)

    with pytest.raises(OutOfMemoryError, match="with 2 rows"):
        limit.run(work, longest=30)
    assert tries == [None, 30]
    fixed = TokenLimit(50)
    with pytest.raises(OutOfMemoryError, match="with 2 rows"):
        fixed.run(work, longest=30)
    assert tries == [None, 30, 50]


@pytest.mark.parametrize("message", ["MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_other_devices_errors_are_recognised(run_config: Path, memory_of: FakeMemory, message: str) -> None:
    memory_of(20, error=RuntimeError(message))
    with pytest.raises(TrainingError, match="step 1: out of memory"):
        trained(run_config, *NO_VALIDATION)


def test_other_errors_are_left_alone(run_config: Path, memory_of: FakeMemory) -> None:
    memory_of(20, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        trained(run_config, AUTO)
