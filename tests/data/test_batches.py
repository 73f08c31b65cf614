"""Reading rows, encoding them, and batches of them."""

import gzip
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch
from families import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ptuning.data import readers
from ptuning.data.batches import IGNORED, collate
from ptuning.data.coder import Coder
from ptuning.data.examples import Example, num_cut
from ptuning.data.readers import Row, as_row, read_rows
from ptuning.data.sampling import BatchStream, by_length
from ptuning.data.task import Task
from ptuning.data.tokenizer import text_ids
from ptuning.errors import DataError

TOKENIZER = tiny_tokenizer()
PAD = 2
VERBALIZER = {"negative": " not good", "positive": " positive"}  # 4 tokens and 1


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(source: str, *columns: str) -> list[dict[str, str]]:
    return [dict(row.values) for row in read_rows(source, "train", columns)]


def ids_of(text: str) -> list[int]:
    return text_ids(TOKENIZER, [text])[0]


# Reading


def test_csv_cells_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    content = '\ufefftext,label\n"a, ""b""\r\nc",NA\nnull,1\n,1.0\ntrue,"é\u2028"\n'
    assert read(write(tmp_path / "a.csv", content), "text", "label") == [
        {"text": 'a, "b"\r\nc', "label": "NA"},
        {"text": "null", "label": "1"},
        {"text": "", "label": "1.0"},
        {"text": "true", "label": "é\u2028"},
    ]


@pytest.mark.parametrize("name", ["a.tsv", "a.TSV"])
def test_tsv_cells_are_separated_by_tabs(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, "text\tlabel\na, b\tx\n"), "text") == [{"text": "a, b", "label": "x"}]


def test_quotation_marks_in_tsv_are_text(tmp_path: Path) -> None:
    texts = [f'"row {i}' if i in (20, 60) else f'row {i}"' if i in (40, 90) else f"row {i}" for i in range(200)]
    source = write(tmp_path / "a.tsv", "\n".join(["text", *texts]))
    assert [row["text"] for row in read(source, "text")] == texts


def test_a_cell_that_swallows_lines_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f'"row {i}' if i == 20 else f'row {i}"' if i == 40 else f"row {i}" for i in range(100)]
    assert len(read(write(tmp_path / "a.csv", "\n".join(["text", *rows])), "text")) == 80
    assert re.search(r"a\.csv: 1 rows of 5 line breaks or more, the first from line 22 to 42", caplog.text)
    caplog.clear()
    read(write(tmp_path / "b.csv", 'text\n"two\nlines"\n'), "text")
    assert not caplog.text


def test_a_hundred_thousand_columns_are_counted_at_once(tmp_path: Path) -> None:
    header = ",".join(["text", *map(str, range(100_000))])
    started = time.monotonic()
    assert len(read(write(tmp_path / "a.csv", f"{header}\n{'a,' * 100_000}b\n"), "text")) == 1
    assert time.monotonic() - started < 20
    with pytest.raises(DataError, match="two columns 'text'"):
        read(write(tmp_path / "b.csv", f"{header},text\n"), "text")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.jsonl",
            '{"text": "' + "a" * 200 + '"}',
            "a.jsonl line 1 has 100 characters or more; expected a row of less",
        ),
        ("a.json", '[{"text": "' + "a" * 200 + '"}]', "a.json has 100 characters or more; expected a smaller file, or"),
        ("a.csv", "text\n" + "a" * 200 + "\n", r"a.csv line 2 is not CSV \(field larger than field limit \(100\)\)"),
    ],
)
def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, told: str
) -> None:
    source = write(tmp_path / name, content)
    assert read(source, "text") == [{"text": "a" * 200}]
    monkeypatch.setattr(readers, "_MOST_CHARACTERS", 100)
    with pytest.raises(DataError, match=told):
        read(source, "text")
    monkeypatch.undo()
    assert read(source, "text") == [{"text": "a" * 200}]


def test_a_directory_without_data_is_not_searched(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    write(deep / "rows.csv", "text\na\n")
    with pytest.raises(DataError, match=r"a directory without data files; expected one with \.csv"):
        read(str(tmp_path), "text")


RECORDS = [{"text": "a\n{b}\u2028", "label": "x"}, {"text": "é", "label": "y"}]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", json.dumps(RECORDS, indent=2)),
        ("a.json", "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)),
        ("a.jsonl", "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n"),
    ],
)
def test_json_may_be_an_array_or_an_object_a_line(tmp_path: Path, name: str, content: str, bom: str) -> None:
    assert read(write(tmp_path / name, bom + content), "text", "label") == RECORDS


def test_parquet_is_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "é"], "label": [0, 1], "score": [0.5, None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet"), "train", ["text", "label"])
    assert [(row.values["text"], row.values["label"]) for row in rows] == [("a", "0"), ("é", "1")]
    assert rows[1].where.endswith("a.parquet row 1")


def test_pictures_and_sounds_of_a_file_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {"bytes": None, "path": f"{tmp_path}/secret"}
    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.Image()})
    storage = pyarrow.table({"text": ["a"], "picture": [planted]}).cast(features.arrow_schema)
    parquet.write_table(storage.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "a.parquet")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_: pytest.fail("a picture was decoded"))
    assert read(str(tmp_path / "a.parquet"), "text") == [{"text": "a", "picture": planted}]


def test_whole_numbers_are_taken_as_their_digits_and_other_columns_are_not_looked_at(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1, "score": 0.5, "notes": null}')
    assert read(source, "text", "label") == [{"text": "a", "label": "1", "score": 0.5, "notes": None}]


def test_rows_know_where_they_stand(tmp_path: Path) -> None:
    csv = read_rows(write(tmp_path / "a.csv", 'text\na\n"b\nc"\nd\n'), "train", ["text"])
    assert [row.where.removeprefix(f"{tmp_path}/") for row in csv] == ["a.csv line 2", "a.csv line 4", "a.csv line 5"]
    lines = read_rows(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}'), "train", ["text"])
    assert [row.where.removeprefix(f"{tmp_path}/") for row in lines] == ["a.jsonl line 1", "a.jsonl line 3"]


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", "", r"a.csv has no rows; expected one row or more"),
        ("a.csv", "text,label\n", r"a.csv has no rows"),
        ("a.jsonl", "\n", r"a.jsonl has no rows"),
        ("a.json", "[]", r"a.json has no rows"),
        ("a.json", "", r"a.json has no rows"),
        ("a.csv", "words,label\na,x\n", r"a.csv line 2 has no column 'text'; .*\(there are: words, label\)"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}', r"line 2 has no column 'label'; .*there are: text"),
        ("a.jsonl", "{}", r"a.jsonl line 1 has no column 'text'; .*there are: none"),
        ("a.csv", "text,label\na,x\nb\n", r"a.csv line 3: column 'label' holds None; expected text"),
        (
            "a.csv",
            "text,label\na,x\nb,c,x\n",
            r"a.csv line 3 has more cells than the header; .*Quote cells with commas",
        ),
        ("a.csv", 'text,label\na,x\n"b,x\nc,x\nd,x\n', r"a.csv line 3 is not CSV \(unexpected end of data\)"),
        ("a.csv", 'text,label\n"a"b,x\n', r"a.csv line 2 is not CSV"),
        ("a.csv", 'text,label\na,x\n"b" c,x\nd,x\n', r"a.csv line 3 is not CSV"),
        ("a.csv", "text,label\ncaf\u00e9,x\n".encode("latin-1"), r"a.csv is not UTF-8 text \(.*Convert it"),
        ("a.jsonl", b'{"text": "\xe9", "label": "x"}', r"a.jsonl is not UTF-8 text"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b"\n',
            r"line 2 is not JSON \(.*one object per line",
        ),
        ("a.json", '{"text": "a", "label": "x"}\n{"text": "b"\n', r"a.json record 2 is not JSON"),
        ("a.jsonl", '["a", "x"]', r"a.jsonl line 1 holds \['a', 'x'\]; expected an object with columns as keys"),
        ("a.json", '[{"text": "a", "label": "x"}, 5]', r"a.json record 2 holds 5"),
        ("a.json", "5", r"a.json record 1 holds 5"),
        ("a.jsonl", '{"text": null, "label": "x"}', r"line 1: column 'text' holds None; expected text"),
        ("a.jsonl", '{"text": ["a"], "label": "x"}', r"line 1: column 'text' holds \['a'\]; expected text"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl line 1 is not JSON \(maximum recursion depth"),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}', r"line 1: column 'text' holds '\\ud800'; expected text"),
        ("a.parquet", "PAR1", r"a.parquet cannot be read \(ArrowInvalid"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_the_row_named(
    tmp_path: Path, name: str, content: str | bytes, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        read(write(tmp_path / name, content), "text", "label")


@pytest.mark.parametrize("name", ["a.csv", "a.JSONL", "a.parquet"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"data file .*{name} does not exist; .*Check the path"):
        read(str(tmp_path / name), "text")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.csv", "text\na\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.csv cannot be read \(Permission denied\); .*Check its permissions"):
        read(source, "text")


@pytest.mark.parametrize("name", ["nobody/no-such-data", "notes.txt"])
def test_a_hub_name_that_cannot_be_reached_is_one_clear_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DataError, match=f"^{name} cannot be read .*csv.* or a hub data set with a split 'test'"
    ) as caught:
        read_rows(name, "test", ["text"])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv.gz", "text,label\na,x\n"),
        ("a.jsonl.gz", '{"text": "a", "label": "x"}\n'),
        ("A.TSV.GZ", "text\tlabel\na\tx"),
    ],
)
def test_compressed_files_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert [row.values for row in read_rows(str(tmp_path / name), "train", ["text", "label"])] == [
        {"text": "a", "label": "x"}
    ]


_WHOLE = gzip.compress(b"text\n" + b"".join(b"row %d\n" % i for i in range(99)))


@pytest.mark.parametrize("content", [b"text,label", _WHOLE[:-20], _WHOLE[:40] + b"\xff\xff" + _WHOLE[42:]])
def test_a_compressed_file_that_is_broken_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.csv.gz is no whole gzip file \(.*\); expected a gzip file"):
        read_rows(str(tmp_path / "a.csv.gz"), "train", ["text"])


@pytest.mark.parametrize(
    ("behind", "texts"),
    [
        ("", "01234"),
        ("@train", "01234"),
        ("@test", "56"),
        ("@train[:40%]", "01"),
        ("@train[3:]", "34"),
        ("@train[1:-1]", "123"),
    ],
)
def test_folders_that_datasets_saved_are_read_by_split(tmp_path: Path, behind: str, texts: str) -> None:
    tables = {"train": "01234", "test": "56"}
    saved = {split: datasets.Dataset.from_dict({"text": list(each)}) for split, each in tables.items()}
    folder = tmp_path / "me@home"
    datasets.DatasetDict(saved).save_to_disk(str(folder / "saved"))
    rows = read_rows(f"{folder}/saved{behind}", "train", ["text"])
    assert "".join(row.values["text"] for row in rows) == texts


def test_a_folder_of_data_files_is_read_as_the_hub_has_it(tmp_path: Path) -> None:
    for split, text in (("train", "a"), ("test", "b")):
        (tmp_path / f"{split}.csv").write_text(f"text\n{text}\n")
    assert [row.values for row in read_rows(str(tmp_path), "test", ["text"])] == [{"text": "b"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_stands_between_cells_is_found_in_the_header(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    lines = [["label", '"the text, whole"'], ["x", '"a, b; c | d"']]
    path.write_text("\ufeff" + "\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    assert [row.values for row in read_rows(str(path), "train", ["the text, whole", "label"])] == [
        {"label": "x", "the text, whole": "a, b; c | d"}
    ]


@pytest.mark.parametrize(("source", "subset"), [("owner/data", None), ("owner/data:french", "french")])
def test_a_hub_data_sets_subset_stands_after_a_colon(
    source: str, subset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, subset: str | None, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([{"text": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows(source, "validation", ["text"]) == [Row({"text": "a"}, f"{source} row 0")]
    assert asked == [("owner/data", subset, "validation")]


# Encoding


def test_a_labelled_row_has_its_label_and_the_labels_ids() -> None:
    coder = Coder(Task("{prompt:2}{text}", verbalizer=VERBALIZER), TOKENIZER)
    assert coder.encode(
        [Row({"text": " film", "label": "positive"}, "a"), Row({"text": "", "label": "negative"}, "b")]
    ) == [
        Example([-1, -2, 0, *ids_of(" film")], ids_of(" positive"), label=1),
        Example([-1, -2, 0], ids_of(" not good"), label=0),
    ]


def test_an_unknown_label_names_its_row_and_the_labels() -> None:
    coder = Coder(Task("{prompt:2}{text}", verbalizer=VERBALIZER), TOKENIZER)
    match = "rows.csv line 7: label 'Positive'; expected one of negative, positive. Correct it, or add it to"
    with pytest.raises(DataError, match=match):
        coder.encode([Row({"text": "a", "label": "Positive"}, "rows.csv line 7")])


def test_a_generated_answer_ends_with_the_end_of_text_token() -> None:
    coder = Coder(Task("{prompt:2}{text}:", answer=" {label}!"), TOKENIZER)
    (example,) = coder.encode([Row({"text": "film", "label": "good {x}"}, "a")])
    assert example == Example([-1, -2, 0, *ids_of("film:")], [*ids_of(" good {x}!"), TOKENIZER.eos_token_id])


def test_a_missing_column_names_the_row() -> None:
    coder = Coder(Task("{prompt:2}{text}{title}", answer="{label}"), TOKENIZER)
    with pytest.raises(DataError, match=r"row 3 has no column 'title'; .*\(there are: text, label\)"):
        coder.encode([Row({"text": "a", "label": "x"}, "row 3")])
    with pytest.raises(DataError, match="row 4 has no column 'label'"):
        coder.encode([Row({"text": "a", "title": "x"}, "row 4")])
    with pytest.raises(DataError, match="row 5 has no column 'text'"):
        coder.encode_questions([Row({"title": "x"}, "row 5")])


@pytest.mark.parametrize(("max_length", "max_positions"), [(12, None), (None, 12), (12, 99), (99, 12)])
def test_rows_are_cut_to_the_narrower_limit_with_room_for_the_longest_label(
    max_length: int | None, max_positions: int | None
) -> None:
    task = Task("{prompt:2}{text}:", verbalizer=VERBALIZER, max_length=max_length)
    coder = Coder(task, TOKENIZER, max_positions)
    rows = [Row({"text": " film" * 20, "label": label}, label) for label in VERBALIZER]
    negative, positive = coder.encode(rows)
    assert negative.ids == positive.ids == [-1, -2, 0, *ids_of(" film" * 4 + ":")]
    assert len(negative) == 12
    assert coder.encode_questions(rows)[0].ids == negative.ids
    short = coder.encode([Row({"text": " film", "label": "positive"}, "short")])
    assert num_cut([negative, positive, *short]) == 2


def test_a_generated_answer_leaves_less_room_the_longer_it_is() -> None:
    coder = Coder(Task("{prompt:2}{text}", max_length=10), TOKENIZER)
    rows = [Row({"text": " film" * 20, "label": " good" * n}, "a") for n in (1, 4)]
    examples = coder.encode(rows)
    assert [(len(each), len(each.answer_ids)) for each in examples] == [(10, 2), (10, 5)]


def test_what_is_to_be_written_is_limited_by_the_models_positions_alone() -> None:
    coder = Coder(Task("{prompt:2}{text}", max_length=10), TOKENIZER, max_positions=16)
    rows = [Row({"text": " film" * 20}, "a")]
    assert [len(coder.encode_prompts(rows, number)[0].ids) for number in (1, 6, 7, 12)] == [10, 10, 9, 4]
    with pytest.raises(DataError, match="a needs 3 tokens before any of its 'text'; expected at most 2"):
        coder.encode_prompts(rows, 14)


def test_a_row_that_cannot_fit_is_named() -> None:
    coder = Coder(Task("{prompt:9}{text}", max_length=10), TOKENIZER)
    with pytest.raises(
        DataError, match=r"rows.csv line 2 needs 10 tokens before any of its 'text'; expected at most 7"
    ):
        coder.encode([Row({"text": " film", "label": " good film"}, "rows.csv line 2")])


def test_no_limit_cuts_nothing() -> None:
    coder = Coder(Task("{prompt:2}{text}"), TOKENIZER)
    (example,) = coder.encode([Row({"text": " film" * 5000, "label": "x"}, "a")])
    assert (len(example.ids), example.was_cut) == (5003, False)


def test_values_given_in_python_are_checked_like_a_files() -> None:
    given_values = {"text": "a", "label": 3}
    assert as_row(given_values, "row 0", ["text", "label"]).values == {"text": "a", "label": "3"}
    assert given_values["label"] == 3
    with pytest.raises(DataError, match=r"row 0: column 'text' holds \[\]; expected text"):
        as_row({"text": []}, "row 0", ["text"])


# Batches

EXAMPLES = [Example([-1, -2, 7, 8, 9], [20]), Example([-1, -2, 7], [21, 22]), Example([-1, -2, 7, 8], [])]


def test_rows_are_padded_on_the_right() -> None:
    batch = collate(EXAMPLES, PAD)
    assert batch.ids_BT.tolist() == [[-1, -2, 7, 8, 9, 20], [-1, -2, 7, 21, 22, PAD], [-1, -2, 7, 8, PAD, PAD]]
    assert batch.mask_BT.tolist() == [[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2]
    no = IGNORED
    assert batch.labels_BT.tolist() == [[no] * 5 + [20], [no] * 3 + [21, 22, no], [no] * 6]
    assert batch.num_prefix_tokens == 2


def test_rows_are_padded_on_the_left() -> None:
    batch = collate(EXAMPLES, PAD, padding_side="left")
    assert batch.ids_BT.tolist() == [[-1, -2, 7, 8, 9, 20], [PAD, -1, -2, 7, 21, 22], [PAD, PAD, -1, -2, 7, 8]]
    assert batch.mask_BT.tolist() == [[1] * 6, [0] + [1] * 5, [0] * 2 + [1] * 4]
    no = IGNORED
    assert batch.labels_BT.tolist() == [[no] * 5 + [20], [no] * 4 + [21, 22], [no] * 6]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_position_before_each_label_is_scored(side: str) -> None:
    batch = collate(EXAMPLES[:2], PAD, side)
    rows, places = batch.scored_BT.nonzero().unbind(1)
    assert batch.targets_N.tolist() == [20, 21, 22]
    assert batch.ids_BT[rows, places + 1].tolist() == [20, 21, 22]
    assert batch.ids_BT[rows, places].tolist() == [9, 7, 21]
    assert batch.scored_BT.dtype == torch.bool


TOKENS = st.lists(st.integers(0, 99), max_size=6)


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    """Rows with up to 3 leading virtual tokens, some text and some answer."""
    slots = [list(range(-1, -1 - draw(st.integers(0, 3)), -1)) for _ in range(draw(st.integers(1, 5)))]
    return [Example([*slot, draw(st.integers(0, 99)), *draw(TOKENS)], draw(TOKENS)) for slot in slots]


@given(examples(), st.sampled_from(["left", "right"]))
@settings(deadline=None)
def test_padding_loses_and_adds_nothing(rows: list[Example], side: str) -> None:
    batch = collate(rows, PAD, side)
    for i, row in enumerate(rows):
        assert batch.ids_BT[i][batch.mask_BT[i].bool()].tolist() == [*row.ids, *row.answer_ids]
        assert batch.labels_BT[i][batch.labels_BT[i] != IGNORED].tolist() == row.answer_ids
        assert batch.scored_BT[i].sum() == len(row.answer_ids)
        assert batch.ids_BT[i][~batch.mask_BT[i].bool()].eq(PAD).all()
    assert batch.targets_N.tolist() == [token for row in rows for token in row.answer_ids]
    assert batch.ids_BT.shape[1] == max(map(len, rows))


@pytest.mark.parametrize(
    ("ids", "num_prefix_tokens"),
    [
        ([[-1, -2, -3, 5], [-1, -2, -3, 6, 7]], 3),
        ([[-1, -2, -3, 5], [-1, -2, 6, -3]], 2),
        ([[-1, -2, 5], [5, -1, -2]], 0),
        ([[5], [6]], 0),
        ([[-1, -2, -3], [-1, -2, -3]], 2),
        ([[-1], [-1, 4]], 0),
    ],
)
def test_shared_virtual_tokens_lead_every_row_and_precede_what_is_scored(
    ids: list[list[int]], num_prefix_tokens: int
) -> None:
    batch = collate([Example(each, [9]) for each in ids], PAD)
    assert batch.num_prefix_tokens == num_prefix_tokens
    assert not batch.scored_BT[:, :num_prefix_tokens].any()


def test_a_batch_moves_whole() -> None:
    batch = collate(EXAMPLES, PAD).to(torch.device("meta"))
    assert {tensor.device.type for tensor in (batch.ids_BT, batch.mask_BT, batch.labels_BT)} == {"meta"}
    assert batch.num_prefix_tokens == 2


# Order

LENGTHS = [5 + (i * 7919) % 50 for i in range(103)]


def epoch(stream: BatchStream, number: int = 0) -> list[list[int]]:
    first = number * stream.num_batches_per_epoch
    return [stream[i] for i in range(first, first + stream.num_batches_per_epoch)]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(0, 5),
    st.booleans(),
)
@settings(deadline=None)
def test_every_row_comes_once_an_epoch(
    lengths: list[int], batch_size: int, seed: int, number: int, is_grouped: bool
) -> None:
    batches = epoch(BatchStream(lengths, batch_size, seed, is_grouped), number)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 99), st.integers(0, 3))
@settings(deadline=None)
def test_every_label_is_read_equally_often_where_that_is_asked_for(
    labels: list[int], batch_size: int, seed: int, number: int
) -> None:
    rows = [
        row for batch in epoch(BatchStream([1] * len(labels), batch_size, seed, labels=labels), number) for row in batch
    ]
    assert len(rows) == len(labels)
    of_labels = Counter(labels[row] for row in rows)
    assert max(of_labels.values()) - min(of_labels[label] for label in set(labels)) <= 1
    for label in set(labels):  # no row of a label more than twice as often as needed
        times = Counter(row for row in rows if labels[row] == label)
        assert max(times.values(), default=0) <= -(-of_labels[label] // labels.count(label)) + 1


def test_all_rows_of_a_common_label_come_in_turn() -> None:
    stream = BatchStream([1] * 32, 8, seed=0, labels=[0] * 30 + [1] * 2)
    seen = [{row for batch in epoch(stream, number) for row in batch} for number in range(12)]
    assert len(seen[0]) == 18  # 16 of 30, and both of the rare ones
    assert set.union(*seen) == set(range(32))


def test_the_order_follows_from_the_seed_and_the_number_alone() -> None:
    one, other = BatchStream(LENGTHS, 8, seed=3), BatchStream(LENGTHS, 8, seed=3)
    numbers = [40, 2, 41, 0, 13, 12, 2, 100]
    forwards = {i: one[i] for i in range(101)}
    assert [other[i] for i in numbers] == [forwards[i] for i in numbers]


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    stream = BatchStream(LENGTHS, 8, seed=0)
    orders: Sequence[list[list[int]]] = [epoch(stream, 0), epoch(stream, 1), epoch(BatchStream(LENGTHS, 8, seed=1))]
    flat = [[row for batch in order for row in batch] for order in orders]
    assert flat[0] != flat[1] != flat[2] != flat[0]
    together = [{frozenset(batch) for batch in order} for order in orders]
    assert together[0] != together[1] != together[2] != together[0]


def test_batches_are_drawn_whatever_the_lengths() -> None:
    assert epoch(BatchStream(LENGTHS, 8, seed=0)) == epoch(BatchStream([1] * len(LENGTHS), 8, seed=0))


def test_rows_of_similar_length_stand_together_if_grouped() -> None:
    batches = epoch(BatchStream(LENGTHS, 8, seed=0, group_by_length=True))
    padded = sum(max(LENGTHS[row] for row in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(LENGTHS)
    assert [max(LENGTHS[row] for row in batch) for batch in batches] != sorted(
        max(LENGTHS[row] for row in batch) for batch in batches
    )


def test_batches_by_length_cover_all_rows_longest_first() -> None:
    rows = [Example([1] * length, [2]) for length in LENGTHS]
    batches = by_length(rows, 8)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(LENGTHS)))
    assert [LENGTHS[row] for row in order] == sorted(LENGTHS, reverse=True)
    assert [len(batch) for batch in batches] == [8] * 12 + [7]


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [
        (10**9, [[0, 1, 2, 7], [3, 4, 5, 6]]),
        (30, [[0, 1, 7], [2, 3, 4], [5, 6]]),
        (8, [[0, 1, 7], [2, 3, 4], [5, 6]]),
    ],
)
def test_rows_are_parted_where_that_saves_more_than_a_batch_costs(overhead: int, expected: list) -> None:
    examples = [Example([-1, *range(length)], []) for length in (40, 39, 20, 19, 20, 10, 9, 40)]
    assert [sorted(batch) for batch in by_length(examples, 4, overhead_tokens=overhead)] == expected


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7), overhead=st.integers(0, 20))
def test_no_way_of_parting_the_sorted_rows_is_cheaper(lengths: list[int], overhead: int) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) + overhead for batch in batches)

    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    every_way = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        batches = [order[start:end] for start, end in itertools.pairwise(places)]
        if all(len(batch) <= 3 for batch in batches):
            every_way.append(cost(batches))
    examples = [Example(list(range(length)), []) for length in lengths]
    assert cost(by_length(examples, 3, overhead_tokens=overhead)) == min(every_way)


@pytest.mark.parametrize("limit", [50, 120, 1000])
def test_batches_stay_below_their_tokens_padding_included(limit: int) -> None:
    shapes = [(0, 40), (9, 5), (4, 20), (0, 3), (9, 30), (4, 4)] * 3
    examples = [Example([*range(-1, -leading - 1, -1), *range(rest)], []) for leading, rest in shapes]
    batches = by_length(examples, 8, max_batch_tokens=limit, num_new_tokens=2)
    assert sorted(i for batch in batches for i in batch) == list(range(len(examples)))
    for batch in batches:
        width = max(shapes[i][0] for i in batch) + max(shapes[i][1] for i in batch) + 2
        assert len(batch) <= 8
        assert width * len(batch) <= limit or len(batch) == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{prompt:2}review: {text}", "review:"),
        ("{prompt:2}{text} is", ""),
        ("{text}{prompt:2}", ""),
        ("{prompt:2} the film", " the"),  # one token must be left
    ],
)
def test_what_every_row_begins_with_joins_no_text(template: str, expected: str) -> None:
    tokenizer = tiny_tokenizer()
    slot = [-1, -2] if template.startswith("{prompt") else []
    coder = Coder(Task(template), tokenizer)
    assert list(coder.prefix_ids) == [*slot, *tokenizer(expected).input_ids]


def test_chat_frame_is_begun_with_by_every_row() -> None:
    tokenizer = tiny_tokenizer()
    coder = Coder(Task("{prompt:2}review: {text}", chat_template=True), tokenizer)
    assert tokenizer.decode(coder.prefix_ids[2:]) == "<s>user: review:"


def test_encoders_question_and_decoders_answer_have_positions_of_their_own() -> None:
    rows = [Row({"text": "x" * 200, "label": "y" * 30}, "row")]
    for closes, expected in ((False, 50 - 31), (True, 50)):
        (example,) = Coder(Task("{prompt:2}{text}"), tiny_tokenizer(), 50, closes).encode(rows)
        assert len(example.ids) == expected
        (question,) = Coder(Task("{prompt:2}{text}"), tiny_tokenizer(), 50, closes).encode_prompts(rows, 31)
        assert len(question.ids) == expected
    with pytest.raises(DataError, match="row: an answer of 61 tokens; expected at most 50"):
        Coder(Task("{text}"), tiny_tokenizer(), 50, True).encode([Row({"text": "x", "label": "y" * 60}, "row")])
