"""What the cases of a campaign spoil: a tiny base, rows, a config, a finished run and one that was interrupted.

Each command runs in a process that is forked off, so that nothing has to be loaded again, and one that does not end can
be ended.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ptuning
from campaign.cases import Case
from ptuning.cli.main import main
from ptuning.training import Interrupted

MOST_SECONDS = 60.0  # of a command
ROWS = [{"text": f"a film of number {i}", "label": ("good", "bad")[i % 2]} for i in range(24)]


class World:
    """A folder with everything whole, and what the commands give there.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._whole, self._spoiled = folder / "whole", folder / "world"
        self._make()
        self._expected: dict[tuple[str, ...], str] = {}
        self._seconds: dict[tuple[str, ...], float] = {}

    def outcome(self, case: Case) -> dict[str, Any]:
        """What ptuning makes of a case: refused, as before, taken; or what is not clean about it."""
        self._reset()
        if case.command not in self._expected:
            started = time.monotonic()
            status, told = self._run(case.command)
            assert status == 0, told
            self._seconds[case.command] = time.monotonic() - started
            self._expected[case.command] = self._answer(case.command)
            self._reset()
        case.spoil(self._spoiled)
        if case.kill_at is not None:
            self._run(case.command, case.kill_at)
        if case.kill_after is not None:
            self._run(case.command, most_seconds=case.kill_after * self._seconds[case.command])
        status, told = self._run(case.command)
        return self._judged(case, status, told)

    def _judged(self, case: Case, status: int | None, told: str) -> dict[str, Any]:
        if status is None:
            return {"is_clean": False, "what": f"it does not end within {MOST_SECONDS:.0f} s"}
        if "Traceback" in told:
            return {"is_clean": False, "what": told.strip().splitlines()[-1][:300]}
        if status == 2:
            lines = [line for line in told.splitlines() if line.startswith("ptuning: ")]
            return {"is_clean": len(lines) == 1, "what": "refused", "told": told[-300:]}
        if status != 0:
            return {"is_clean": False, "what": f"status {status}: {told[-300:]}"}
        if self._answer(case.command) == self._expected[case.command]:
            return {"is_clean": True, "what": "as before"}
        return {"is_clean": case.may_change, "what": "taken" if case.may_change else "another answer without a word"}

    def _answer(self, command: Sequence[str]) -> str:
        """What a command left: the answers' file, or the prompt's tensor and the names of a run's files."""
        if command[0] == "train":
            directory = self._spoiled / command[command.index("--train.output_dir") + 1]
            prompt = ptuning.SoftPrompt.load(directory / "prompt")
            digest = hashlib.sha256(prompt.embeddings_PH.numpy().tobytes()).hexdigest()
            return "\n".join([digest, *sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))])
        return (self._spoiled / "answers.jsonl").read_text(encoding="utf-8")

    def _reset(self) -> None:
        shutil.rmtree(self._spoiled, ignore_errors=True)
        shutil.copytree(self._whole, self._spoiled, symlinks=True)

    def _run(
        self, command: Sequence[str], kill_at: int | None = None, most_seconds: float | None = None
    ) -> tuple[int | None, str]:
        """The exit status of a command, None for one that had to be killed, and what it wrote to standard error."""
        log = self._spoiled / "stderr"
        log.touch()  # a process that is killed at once writes none
        child = os.fork()
        if child == 0:
            self._become(command, log, kill_at)
        until = time.monotonic() + (MOST_SECONDS if most_seconds is None else most_seconds)
        while time.monotonic() < until:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, log.read_text(encoding="utf-8", errors="replace")

    def _become(self, command: Sequence[str], log: Path, kill_at: int | None) -> None:
        """Turns the forked process into the command."""
        status = 70
        try:
            torch.set_num_threads(1)  # makes a forked process's pool anew, before several threads would at once
            _renew_lock(tqdm, threading.RLock())
            os.chdir(self._spoiled)
            for number, target in ((1, os.devnull), (2, str(log))):
                os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600), number)
            if kill_at is not None:
                _kill_at(kill_at)
            status = main([*command])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def _make(self) -> None:
        self._whole.mkdir()
        with contextlib.chdir(self._whole), open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            _save_base(Path("base"))
            lines = [json.dumps(row) for row in ROWS]
            Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
            cells = ["text,label", *(f"{row['text']},{row['label']}" for row in ROWS)]
            Path("rows.csv").write_text("\n".join(cells), encoding="utf-8")
            Path("rows.tsv").write_text("\n".join(cells).replace(",", "\t"), encoding="utf-8")
            settings = {
                "model": {"name_or_path": "base", "device": "cpu", "dtype": "float32"},
                "data": {
                    **dict.fromkeys(("train", "validation"), "rows.jsonl"),
                    "template": "{prompt:4}{text}:",
                    "verbalizer": {"good": " good", "bad": " bad"},
                },
                "train": {
                    "output_dir": "finished",
                    "max_steps": 6,
                    "eval_steps": 2,
                    "save_steps": 2,
                    "logging_steps": 2,
                },
            }
            Path("config.yaml").write_text(json.dumps(settings, indent=2), encoding="utf-8")
            ptuning.train(ptuning.RunConfig.from_yaml("config.yaml"))
            self._interrupt()

    @staticmethod
    def _interrupt() -> None:
        """Leaves a run after its fourth step."""

        def stop(record: Any) -> None:
            if record.step == 4:
                signal.raise_signal(signal.SIGINT)

        config = ptuning.RunConfig.from_yaml("config.yaml", ["--train.output_dir", "stopped"])
        with contextlib.suppress(Interrupted):
            ptuning.train(config, on_step=stop)


def _renew_lock(bar: type[tqdm], lock: Any) -> None:
    """Gives progress bars another lock: forked processes share theirs, and one that was killed may hold it."""
    bar.set_lock(lock)
    for each in bar.__subclasses__():
        _renew_lock(each, lock)


def _kill_at(number: int) -> None:
    """Kills this process before one of its file operations."""
    left = itertools.count(-number)

    def hook(event: str, _: Any) -> None:
        is_counted = event.startswith(("os.", "shutil.")) or event in ("open", "ctypes.dlsym", "fcntl.flock")
        if is_counted and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _save_base(directory: Path) -> None:
    """A tiny Llama whose tokens are bytes."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), bos_token_id=0, eos_token_id=1, **size))
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
