#!/usr/bin/env python
"""Checks the client against a real vLLM, in fp32 on this machine, and prints what it found as one JSON object.

    python scripts/check_vllm.py LABELS_PROMPT_DIR [TEXTS_PROMPT_DIR] [--base DIR] [--data FILE] [--port N]

The first prompt classifies, the second writes; without a second one, the first writes. Both must read the columns of
the data. It starts the server with scripts/serve_vllm.sh four times, so the machine should be quiet.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import ptuning
from ptuning.cli.main import main as cli
from ptuning.data import read_rows
from ptuning.export import ExportedPrompts, MergedPrompts, VLLMClient, merge, write_vllm

REPOSITORY = Path(__file__).parent.parent
NUM_ROWS, NUM_WRITTEN, NUM_RESUMED, NUM_PROMPTS, NEW_TOKENS = 300, 20, 200, 8, 20
SECONDS_TO_START = 600


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("labels", help="a prompt with labels, or its run")
    parser.add_argument("texts", nargs="?", help="a prompt that writes, or its run")
    parser.add_argument("--base", default="assets/smollm2-135m-instruct")
    parser.add_argument("--data", default="assets/movie_reviews/test.csv")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--work", help="where exports and logs go (default: a new directory, which is removed)")
    return parser.parse_args()


@contextlib.contextmanager
def server(model: str | Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A vLLM in fp32, at work; it is killed at the end, if it was not before."""
    command = ["bash", str(REPOSITORY / "scripts" / "serve_vllm.sh"), str(model), str(port)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "VLLM_DTYPE": "float32"}, start_new_session=True
        )
    try:
        for _ in range(SECONDS_TO_START):
            if process.poll() is not None:
                raise SystemExit(f"the server ended: see {log}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            time.sleep(1)
        else:
            raise SystemExit(f"the server did not start within {SECONDS_TO_START} s: see {log}")
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the server with its engine, and waits until its port is free."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
    time.sleep(1)


def metrics(port: int) -> dict[str, float]:
    """The server's counters of the prefix cache, in tokens."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    names = ("prefix_cache_queries", "prefix_cache_hits")
    found = {name: re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)$", text, flags=re.MULTILINE) for name in names}
    return {name: sum(map(float, values)) for name, values in found.items()}


def compared(found: Sequence[Any], expected: Sequence[Any]) -> dict[str, Any]:
    """How many labels are equal, and the largest difference between probabilities."""
    pairs = list(zip(found, expected, strict=True))
    differences = [abs(a.probabilities[label] - b.probabilities[label]) for a, b in pairs for label in a.probabilities]
    return {
        "rows": len(pairs),
        "same_labels": sum(a.label == b.label for a, b in pairs),
        "largest_difference": max(differences),
        "smallest_margin_of_a_difference": min(
            (abs(max(b.probabilities.values()) - b.probabilities[a.label]) for a, b in pairs if a.label != b.label),
            default=None,
        ),
    }


def timed(act: Any) -> tuple[Any, float]:
    """What an act returns, and its seconds."""
    start = time.perf_counter()
    return act(), time.perf_counter() - start


def check_answers(client: VLLMClient, lm: ptuning.PromptedLM, rows: list[Any], port: int) -> dict[str, Any]:
    """Labels, mixed prompts, writing, speed, the prefix cache and the bytes sent."""
    expected, own_seconds = timed(lambda: lm.classify(rows, "0"))
    client.classify(rows[:1], "0")
    num_bytes = client.server.num_bytes_sent
    found, seconds = timed(lambda: client.classify(rows, "0"))
    num_bytes = client.server.num_bytes_sent - num_bytes
    client.classify(rows[:1], "twice")
    before = metrics(port)
    twice = client.classify(rows[1:], "twice")
    after = metrics(port)
    names = [str(i % NUM_PROMPTS) for i in range(len(rows))]
    few, num_chat_bytes = rows[:NUM_WRITTEN], client.server.num_bytes_sent
    chat = client.classify(few, "chat")
    num_chat_bytes = client.server.num_bytes_sent - num_chat_bytes
    texts, expected_texts = client.generate(few, "words", NEW_TOKENS), lm.generate(few, "words", NEW_TOKENS)
    streamed = dict.fromkeys(range(NUM_WRITTEN), "")
    for row, text in client.generate(few, "words", NEW_TOKENS, stream=True):
        streamed[row] += text
    return {
        "probe_difference": client.served.difference,
        "labels": compared(found, expected),
        f"labels_of_{NUM_PROMPTS}_prompts": compared(client.classify(rows, names), lm.classify(rows, names)),
        "written": {"rows": len(texts), "same": sum(map(str.__eq__, texts, expected_texts))},
        "streamed": {"rows": len(texts), "same": sum(map(str.__eq__, streamed.values(), texts))},
        "rows_a_second": {"vllm": len(rows) / seconds, "ptuning": len(rows) / own_seconds},
        "twice_as_many_tokens": {
            **compared(twice, lm.classify(rows[1:], "twice")),
            **{f"{name}_tokens": after[name] - before[name] for name in after},
        },
        "bytes_a_request": num_bytes / len(rows),
        "labels_of_several_tokens": compared(client.classify(few, "long"), lm.classify(few, "long")),
        "chat_parts": {**compared(chat, lm.classify(few, "chat")), "bytes_a_request": num_chat_bytes / len(few)},
    }


def check_resume(arguments: argparse.Namespace, exported: Path, work: Path, rows: list[Any]) -> dict[str, Any]:
    """Kills the server half-way through a file, starts another, and resumes: no row is lost, none doubled."""
    data, output = work / "rows.jsonl", work / "answers.jsonl"
    data.write_text("".join(json.dumps({"number": i, **row}) + "\n" for i, row in enumerate(rows[:NUM_RESUMED])))
    url = f"http://127.0.0.1:{arguments.port}"
    command = ["predict", str(exported), "--server", url, "--name", "0", "--data", str(data), "--output", str(output)]
    journal, log = output.with_name(f"{output.name}.answers.jsonl"), work / "server.log"
    with server(arguments.base, arguments.port, log) as process:

        def kill_half_way() -> None:
            while not journal.exists() or len(journal.read_bytes().splitlines()) < NUM_RESUMED // 2:
                time.sleep(0.01)
            kill(process)

        killer = threading.Thread(target=kill_half_way, daemon=True)
        killer.start()
        with contextlib.redirect_stdout(sys.stderr):
            status = cli(command)
        killer.join()
    kept = len(journal.read_bytes().splitlines()) - 1
    with server(arguments.base, arguments.port, log), contextlib.redirect_stdout(sys.stderr):
        again = cli([*command, "--resume"])
    numbers = [int(json.loads(line)["number"]) for line in output.read_text().splitlines()]
    is_whole = numbers == list(range(NUM_RESUMED))
    return {"status": [status, again], "kept": kept, "rows": len(numbers), "none_lost_or_doubled": is_whole}


def check_merged(arguments: argparse.Namespace, work: Path, rows: list[Any], expected: Sequence[Any]) -> dict[str, Any]:
    """Sends plain text to the merged model, served by the same script."""
    prompt = ptuning.SoftPrompt.load(arguments.labels)
    directory = work / "merged"
    merge(arguments.base, {"labels": prompt}, directory, dtype="float32")
    merged = MergedPrompts.load(directory)
    label_ids = merged.prompts["labels"].label_ids
    first = {ids[0]: label for label, ids in label_ids.items()}
    same, num_bytes = 0, 0
    with server(directory, arguments.port, work / "server.log"):
        for text, own in zip(merged.texts(rows, "labels", 1), expected, strict=True):
            body = {"model": str(directory), "prompt": text, "max_tokens": 1, "temperature": 0}
            body |= {"add_special_tokens": False, "allowed_token_ids": list(first), "return_token_ids": True}
            content = json.dumps(body).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{arguments.port}/v1/completions", content, {"Content-Type": "application/json"}
            )
            answer = json.loads(urllib.request.urlopen(request, timeout=300).read())
            same += first[answer["choices"][0]["token_ids"][0]] == own.label
            num_bytes += len(content)
    return {"rows": len(rows), "same_labels": same, "bytes_a_request": num_bytes / len(rows)}


def main() -> None:
    """Runs all checks."""
    arguments = parsed()
    with contextlib.ExitStack() as stack:
        work = Path(arguments.work or stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        labels = ptuning.SoftPrompt.load(arguments.labels)
        prompts = prompts_beside(labels, ptuning.SoftPrompt.load(arguments.texts) if arguments.texts else None)
        lm = ptuning.PromptedLM.from_pretrained(arguments.base, prompts, dtype="float32", device="cpu")
        columns = tuple(dict.fromkeys([*lm.columns("0"), *lm.columns("words")]))
        rows = [dict(row.values) for row in read_rows(arguments.data, "test", columns)][:NUM_ROWS]
        exported: ExportedPrompts = write_vllm(arguments.base, prompts, work / "exported", dtype="float32")
        url, result = f"http://127.0.0.1:{arguments.port}", dict[str, Any]()
        with server(arguments.base, arguments.port, work / "server.log"), VLLMClient(exported, url) as client:
            result |= check_answers(client, lm, rows, arguments.port)
        result["resumed"] = check_resume(arguments, work / "exported", work, rows)
        result["merged"] = check_merged(arguments, work, rows, lm.classify(rows, "0"))
        print(json.dumps(result, indent=2))
    is_well = result["labels"]["same_labels"] == len(rows) and result["resumed"]["none_lost_or_doubled"]
    sys.exit(0 if is_well else 1)


def prompts_beside(labels: ptuning.SoftPrompt, texts: ptuning.SoftPrompt | None) -> dict[str, ptuning.SoftPrompt]:
    """The prompts, and others made of the first: shaken, twice as long, with longer labels, in a chat."""
    task = labels.task
    assert task is not None
    assert task.verbalizer is not None
    longer = dataclasses.replace(task, verbalizer={label: f"{text} indeed" for label, text in task.verbalizer.items()})
    column, slot = task.columns[0], f"{{prompt:{labels.num_virtual_tokens}}}"
    chat = ptuning.Task(f"{{{column}}}\n{slot}\nAnswer:", task.answer, task.verbalizer, chat_template=True)
    twice = dataclasses.replace(
        task, template=task.template.replace(slot, f"{{prompt:{2 * labels.num_virtual_tokens}}}")
    )
    twice_PH = torch.cat([labels.embeddings_PH] * 2)  # more tokens than a block of the prefix cache on a CPU
    several = {str(i): shaken(labels, i) if i else labels for i in range(NUM_PROMPTS)}
    return {
        **several,
        "twice": dataclasses.replace(labels, task=twice, embeddings_PH=twice_PH),
        "long": dataclasses.replace(labels, task=longer),
        "chat": dataclasses.replace(labels, task=chat),
        "words": texts or dataclasses.replace(labels, task=dataclasses.replace(task, verbalizer=None)),
    }


def shaken(prompt: ptuning.SoftPrompt, seed: int) -> ptuning.SoftPrompt:
    """A prompt beside the given one."""
    generator = torch.Generator().manual_seed(seed)
    noise_PH = torch.randn(prompt.embeddings_PH.shape, generator=generator) * 0.1 * prompt.embeddings_PH.std()
    return dataclasses.replace(prompt, embeddings_PH=prompt.embeddings_PH + noise_PH)


if __name__ == "__main__":
    main()
