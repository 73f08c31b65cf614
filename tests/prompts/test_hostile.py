"""A prompt's directory from a stranger is refused with its reason; nothing outside it is read, and nothing runs."""

import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import local_hub
import pytest
import torch
from safetensors.torch import save_file
from sealing import change_json

from ptuning.data.task import Task
from ptuning.errors import PromptError, PTuningError
from ptuning.prompts import storage
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run_directory import LAST, RunDirectory

WEIGHTS, OWN, PEFT = "adapter_model.safetensors", "ptuning.json", "adapter_config.json"
BROKEN = "is truncated or broken"

_seen: list[str] | None = None
_WATCHED = ("os.system", "subprocess.Popen", "pickle.find_class", "import_module")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            _seen.append(f"open {os.path.realpath(os.fsdecode(arguments[0]))}")
        elif event in _WATCHED:
            _seen.append(event)


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What Python opens and runs within the block."""
    global _seen
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


class Planted:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.file), "w"))


def linked(name: str) -> Callable[[Path, Path], None]:
    def spoil(own: Path, elsewhere: Path) -> None:
        (own / name).unlink()
        (own / name).symlink_to(elsewhere / name)
        if name == PEFT:
            (own / OWN).unlink()

    return spoil


def linked_twice(own: Path, elsewhere: Path) -> None:
    (own / OWN).unlink()
    (own / OWN).symlink_to("inner.json")
    (own / "inner.json").symlink_to(Path("../..") / elsewhere.name / OWN)


def tensors(**changed: torch.Tensor) -> Callable[[Path, Path], None]:
    """As PEFT saves it, without a digest of the tensors."""

    def spoil(own: Path, _: Path) -> None:
        (own / OWN).unlink()
        save_file(changed, own / WEIGHTS)

    return spoil


def values(tensor: torch.Tensor) -> Callable[[Path, Path], None]:
    return tensors(prompt_embeddings=tensor)


def header(text: bytes, length: int | None = None) -> Callable[[Path, Path], None]:
    content = struct.pack("<Q", len(text) if length is None else length) + text
    return lambda own, _: (own / WEIGHTS).write_bytes(content) and None


def text(content: bytes, name: str = OWN) -> Callable[[Path, Path], None]:
    return lambda own, _: (own / name).write_bytes(content) and None


def huge(name: str) -> Callable[[Path, Path], None]:
    def spoil(own: Path, _: Path) -> None:
        with (own / name).open("wb") as hole:
            hole.truncate(1 << 37)

    return spoil


def changed(**keys: Any) -> Callable[[Path, Path], None]:
    return lambda own, _: change_json(own / OWN, **keys)


def pickled(name: str, with_torch: bool = False) -> Callable[[Path, Path], None]:
    def spoil(own: Path, elsewhere: Path) -> None:
        planted = Planted(elsewhere / "executed")
        torch.save(planted, own / name) if with_torch else (own / name).write_bytes(pickle.dumps(planted))
        if name == "adapter_model.bin":
            (own / WEIGHTS).unlink()

    return spoil


def replaced(name: str, make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def spoil(own: Path, _: Path) -> None:
        (own / name).unlink()
        make(own / name)

    return spoil


def encoder(**weights: torch.Tensor) -> Callable[[Path, Path], None]:
    """A conditioned prompt of a few tensors."""

    def spoil(own: Path, _: Path) -> None:
        (own / WEIGHTS).unlink()
        save_file(weights, own / "encoder.safetensors")
        change_json(own / OWN, encoder={"name": "conditioned"}, embeddings_sha256=storage._digest(weights))

    return spoil


HEADER = b'{"prompt_embeddings":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,16]}}'
OF_TEXT: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a header of a terabyte": (header(b"{}", 10**12), f"{WEIGHTS} {BROKEN} .*header too large"),
    "a shape beyond all numbers": (header(HEADER + b" " * 7 + bytes(16)), f"{WEIGHTS} {BROKEN}"),
    "an offset beyond the file": (header(HEADER.replace(b"[0,16]", b"[0,99999999]")), f"{WEIGHTS} {BROKEN}"),
    "a header that is no JSON": (header(b"[[[["), f"{WEIGHTS} {BROKEN}"),
    "an empty file": (text(b"", WEIGHTS), f"{WEIGHTS} {BROKEN}"),
    "deep JSON": (text(b"[" * 100_000), f"{OWN} {BROKEN} .*nested too deeply"),
    "a long number": (text(b'{"format_version": 1' + b"0" * 5000 + b"}"), f"{OWN} {BROKEN} .*limit"),
    "no UTF-8": (text(b"\xff\xfe"), f"{OWN} {BROKEN}"),
    "NaN in JSON": (text(b'{"format_version": NaN}'), f"{OWN} {BROKEN} .*it holds NaN"),
    "infinity in JSON": (text(b'{"format_version": 1e999}'), f"{OWN} {BROKEN} .*it holds 1e999"),
    "NaN": (values(torch.full((4, 8), torch.nan)), "NaN or infinity"),
    "infinity": (values(torch.full((4, 8), torch.inf)), "NaN or infinity"),
    "infinity in single precision": (values(torch.full((4, 8), 1e300, dtype=torch.float64)), "NaN or infinity"),
    "whole numbers": (values(torch.ones(4, 8, dtype=torch.int64)), "holds int64 numbers; expected floating-point"),
    "truth values": (values(torch.ones(4, 8, dtype=torch.bool)), "holds bool numbers; expected floating-point"),
    "complex numbers": (values(torch.ones(4, 8, dtype=torch.complex64)), "holds complex64 numbers"),
    "eight-bit floats": (values(torch.ones(4, 8).to(torch.float8_e4m3fn)), "holds float8_e4m3fn numbers"),
    "a row": (values(torch.ones(8)), r"holds .*\[8\]\}; expected one tensor prompt_embeddings \[P, H\]"),
    "a block": (values(torch.ones(2, 4, 8)), r"expected one tensor prompt_embeddings \[P, H\]"),
    "no width": (values(torch.ones(4, 0)), r"holds .*\[4, 0\]\}; expected one tensor prompt_embeddings \[P, H\]"),
    "another name": (tensors(weight=torch.ones(4, 8)), r"expected one tensor prompt_embeddings \[P, H\]"),
    "two tensors": (
        tensors(prompt_embeddings=torch.ones(4, 8), more=torch.ones(1)),
        r"expected one tensor prompt_embeddings \[P, H\]",
    ),
    "other virtual tokens": (
        changed(task={"template": "{prompt:999999999999}{text}"}),
        "4 virtual tokens for a template with 999999999999",
    ),
    "a pickle beside": (pickled("adapter_model.bin"), f"has no {WEIGHTS}; expected a saved prompt"),
    "a pickle as tensors": (pickled(WEIGHTS), f"{WEIGHTS} {BROKEN}"),
    "a pickle of torch as tensors": (pickled(WEIGHTS, with_torch=True), f"{WEIGHTS} {BROKEN}"),
    "a pickle as JSON": (pickled(OWN), f"{OWN} {BROKEN}"),
    "few numbers for wide layers": (
        encoder(prompt_PH=torch.ones(1, 100_000), queries_PW=torch.ones(1, 100_000)),
        "Missing key.*expected a conditioned encoder's",
    ),
    "a row as a conditioned prompt": (
        encoder(prompt_PH=torch.ones(8), queries_PW=torch.ones(1, 2)),
        "expected a conditioned encoder's",
    ),
}
"""What also a repository of the hub can hold."""
ON_DISK: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a link to other tensors": (linked(WEIGHTS), rf"{WEIGHTS}, a link to .*elsewhere/{WEIGHTS} outside the prompt's"),
    "a link to another text": (linked(OWN), rf"{OWN}, a link to .*elsewhere/{OWN} outside the prompt's directory"),
    "a link to another config": (linked(PEFT), rf"{PEFT}, a link to .*elsewhere/{PEFT} outside the prompt's"),
    "a link to a link": (linked_twice, rf"{OWN}, a link to .*elsewhere/{OWN} outside the prompt's directory"),
    "a link to a device": (replaced(WEIGHTS, lambda file: file.symlink_to("/dev/zero")), "a link to /dev/zero outside"),
    "a link to itself": (replaced(OWN, lambda file: file.symlink_to(file.name)), f"{OWN} cannot be read"),
    "a pipe as tensors": (replaced(WEIGHTS, os.mkfifo), f"{WEIGHTS} is no regular file"),
    "a pipe as JSON": (replaced(OWN, os.mkfifo), f"{OWN} is no regular file"),
    "a folder as tensors": (replaced(WEIGHTS, Path.mkdir), f"{WEIGHTS} is no regular file"),
    "huge tensors": (huge(WEIGHTS), f"{WEIGHTS} has 137,438,953,472 bytes; expected at most 1,073,741,824"),
    "huge JSON": (huge(OWN), f"{OWN} has 137,438,953,472 bytes; expected at most 16,777,216"),
}
CASES = {**OF_TEXT, **ON_DISK}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A prompt's directory, with another prompt elsewhere that must not be read."""
    task = Task("{prompt:4}{text}", verbalizer={"good": " good", "bad": " bad"})
    for folder, seed in (("own/prompt", 0), ("elsewhere", 1)):
        embeddings_PH = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        SoftPrompt(embeddings_PH, task, "base").save(tmp_path / folder)
    return tmp_path / "own" / "prompt"


def refused(own: Path, load: Callable[[], Any], told: str) -> None:
    """Asserts that loading is refused in one line, and neither reads nor runs what it must not."""
    elsewhere = own.parent.parent / "elsewhere"
    with watched() as seen, pytest.raises(PTuningError, match=told) as raised:
        load()
    assert "\n" not in str(raised.value)
    assert not [event for event in seen if not event.startswith("open")]
    assert not [event for event in seen if event.startswith((f"open {elsewhere}", "open /dev/zero"))]
    assert not (elsewhere / "executed").exists()


@pytest.mark.parametrize("what", CASES)
def test_a_hostile_directory_is_refused(own: Path, what: str) -> None:
    spoil, told = CASES[what]
    SoftPrompt.load(own)
    spoil(own, own.parent.parent / "elsewhere")
    refused(own, lambda: SoftPrompt.load(own), told)


def test_a_hostile_repository_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = {each.name: each.read_bytes() for each in own.iterdir()}
    with local_hub.serving() as hub:
        local_hub.use(monkeypatch, hub, tmp_path / "cache")
        hub.holds("eve/prompt", whole)
        SoftPrompt.from_pretrained("eve/prompt")
        for number, (spoil, told) in enumerate(OF_TEXT.values()):
            spoil(own, own.parent.parent / "elsewhere")
            files = {each.name: each.read_bytes() for each in own.iterdir()}
            hub.holds("eve/prompt", files, f"v{number}")
            refused(own, lambda at=f"v{number}": SoftPrompt.from_pretrained("eve/prompt", revision=at), told)
            for name in files:
                (own / name).unlink()
            for name, content in whole.items():
                (own / name).write_bytes(content)


def test_links_of_the_hubs_cache_are_followed_and_no_others(own: Path) -> None:
    snapshot = own.parent / "models--a--b" / "snapshots" / "c"
    blobs, shared = snapshot.parent.parent / "blobs", own.parent / "blobs"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    for name in (OWN, PEFT):
        (own / name).rename(blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (own / WEIGHTS).rename(shared / "tensors")  # the cache keeps what repositories share once
    (blobs / WEIGHTS).symlink_to("../../blobs/tensors")
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/{WEIGHTS}")
    assert SoftPrompt.load(snapshot).num_virtual_tokens == 4
    (snapshot / OWN).unlink()
    (snapshot / OWN).symlink_to(own.parent.parent / "elsewhere" / OWN)
    refused(own, lambda: SoftPrompt.load(snapshot), "a link to .* outside the prompt's directory")


def test_a_runs_prompt_is_its_own(own: Path) -> None:
    run = own.parent
    assert SoftPrompt.load(run).num_virtual_tokens == 4
    own.rename(run / "prompt.old")
    own.symlink_to(run.parent / "elsewhere")
    with pytest.raises(PromptError, match=r"a link to .*elsewhere outside the prompt's directory"):
        SoftPrompt.load(run)


def test_names_in_a_prompts_text_are_not_followed(own: Path) -> None:
    elsewhere = own.parent.parent / "elsewhere"
    (elsewhere / "rows.csv").write_text("text,label\n")
    names = {
        "base": {"name": str(elsewhere), "revision": "../../x", "fingerprint": None},
        "training": {"data": dict.fromkeys(("train", "validation", "test"), str(elsewhere / "rows.csv"))},
        "init": {"kind": "prompt", "prompt": str(elsewhere)},
    }
    change_json(own / OWN, **names)
    change_json(own / PEFT, base_model_name_or_path="../../elsewhere", auto_mapping={"base_model_class": "os.system"})
    with watched() as seen:
        assert SoftPrompt.load(own).base_name == str(elsewhere)
    assert len(seen) >= 2
    assert not [event for event in seen if not event.startswith(f"open {own}")]


def test_a_pickle_as_a_runs_state_does_not_run(own: Path) -> None:
    run, elsewhere = own.parent, own.parent.parent / "elsewhere"
    (run / "checkpoints").mkdir()
    torch.save(Planted(elsewhere / "executed"), run / "checkpoints" / "last.pt")
    with watched() as seen:
        SoftPrompt.load(run)
    assert not [event for event in seen if "checkpoints" in event]
    with pytest.raises(PTuningError):
        RunDirectory(run).load_checkpoint(LAST)
    assert not (elsewhere / "executed").exists()


def test_the_watch_sees_a_pickle_and_an_outer_file(own: Path) -> None:
    elsewhere = own.parent.parent / "elsewhere"
    with watched() as seen:
        pickle.loads(pickle.dumps(Planted(elsewhere / "executed"))).close()
        (elsewhere / OWN).read_bytes()
    assert (elsewhere / "executed").exists()
    assert {"pickle.find_class", f"open {elsewhere / OWN}"} <= set(seen)
