"""Documents become passages by the rule that the module states; what cannot be read is one clear line."""

import gzip
import json
import os
from pathlib import Path

import pytest

from ptuning.comparison.passages import MOST_WORDS, passages_of, read_passages
from ptuning.errors import DataError


def sentence(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count)) + "."


def test_sentences_are_joined_up_to_a_hundred_words() -> None:
    text = f"{sentence(0, 40)} {sentence(40, 60)}  {sentence(100, 1)}\n{sentence(101, 98)} One more!"
    assert passages_of(text) == [
        f"{sentence(0, 40)} {sentence(40, 60)}",
        f"{sentence(100, 1)} {sentence(101, 98)}",
        "One more!",
    ]


def test_paragraphs_stay_on_lines_of_their_own_and_line_breaks_in_them_do_not() -> None:
    assert passages_of("# Title\n\nOne thing\nis here. So it is.\n \n\nAnother.\n") == [
        "# Title\nOne thing is here. So it is.\nAnother."
    ]


def test_a_long_sentence_is_cut_and_its_rest_goes_on() -> None:
    long = sentence(0, 250)
    found = passages_of(f"{long} Next.")
    assert [len(each.split()) for each in found] == [MOST_WORDS, MOST_WORDS, 51]
    assert " ".join(found) == f"{long} Next."


def test_text_without_words_gives_no_passages() -> None:
    assert passages_of(" \n\n \t") == []


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("z.txt", "a.MD", "b/c.md", ".git/d.txt", ".hidden.md", "e.csv"):
        (tmp_path / name).write_text(f"\ufeffIn {name}.", encoding="utf-8")
    assert read_passages(str(tmp_path)) == ["In a.MD.", "In b/c.md.", "In z.txt."]
    assert read_passages(str(tmp_path / "z.txt")) == ["In z.txt."]


def test_the_rows_of_a_table_are_passages_as_they_are(tmp_path: Path) -> None:
    long, lines = sentence(0, 130), tmp_path / "passages.jsonl"
    lines.write_text("\n".join(json.dumps({"text": each, "id": 1}) for each in (long, " ", "short\n\nand long")))
    assert read_passages(str(lines)) == [long, "short\n\nand long"]
    (tmp_path / "passages.csv").write_text('id,text\n1,"one, two"\n2,three\n')
    assert read_passages(str(tmp_path / "passages.csv")) == ["one, two", "three"]
    (tmp_path / "passages.csv.gz").write_bytes(gzip.compress(b"text\nfour\n"))
    assert read_passages(str(tmp_path / "passages.csv.gz")) == ["four"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none", None, r"compare.documents: .*none does not exist; expected a folder of .txt and .md files"),
        ("folder/empty.txt", b" \n", r"folder holds no words; expected"),
        ("folder/data.bin", b"\x00", r"folder, a folder without documents; expected a folder of .txt and .md"),
        ("folder/picture.txt", b"\x89PNG\xff", r"picture.txt is not UTF-8 text"),
        ("folder/zeros.md", b"a\x00b", r"zeros.md is no text: it holds zero bytes"),
        ("data.bin", b"a", r"compare.documents: .*data.bin; expected a folder"),
        ("rows.jsonl", b'{"body": "a"}', r"rows.jsonl line 1 .*text"),
        ("rows.csv", b"text\n", r"rows.csv has no rows"),
        ("blank.csv", b'id,text\n1," "\n', r"blank.csv holds no words"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=match) as told:
        read_passages(str(file.parent if name.startswith("folder") else file))
    assert "\n" not in str(told.value)


def test_a_pipe_among_the_documents_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "own.txt").write_text("Words.")
    assert read_passages(str(tmp_path)) == ["Words."]
    with pytest.raises(DataError, match=r"pipe.txt is no regular file"):
        read_passages(str(tmp_path / "pipe.txt"))
