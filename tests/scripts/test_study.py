"""What a study asks for, and what its tables say."""

from pathlib import Path

import pytest
import torch
from studies import tables
from studies.plan import Study

from ptuning.errors import ConfigError

STUDY = """\
tasks: [trec, tweets]
seeds: [0, 1]
model: base
num_train: 140
common: {kind: prompt, train.max_steps: 4}
methods:
  ours: {train.learning_rate: [0.1, 0.3], slots: [20/0/0, 17/0/3]}
  lora: {kind: lora, train.learning_rate: 1.0e-3}
"""


def study(tmp_path: Path, text: str = STUDY) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return Study.from_yaml(path)


def test_a_study_has_a_run_for_every_combination(tmp_path: Path) -> None:
    runs = study(tmp_path).runs
    assert len(runs) == 2 * 2 * (2 * 2 + 1)
    assert [run.seed for run in runs] == [0] * 10 + [1] * 10
    assert len({run.id for run in runs}) == len(runs)
    assert len({run.group for run in runs}) == len(runs) / 2
    assert {run.num_train for run in runs} == {140}
    ours = [run for run in runs if run.method == "ours" and run.task == "trec" and run.seed == 0]
    assert [(run.slots, run.settings["train.learning_rate"]) for run in ours] == [
        ("20/0/0", 0.1),
        ("17/0/3", 0.1),
        ("20/0/0", 0.3),
        ("17/0/3", 0.3),
    ]
    assert all(run.settings["train.max_steps"] == 4 and "slots" not in run.settings for run in runs)


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    longer = study(tmp_path, STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")).runs
    assert {run.id for run in study(tmp_path).runs} < {run.id for run in longer}


def test_a_setting_may_differ_by_task(tmp_path: Path) -> None:
    by_task = STUDY.replace("train.max_steps: 4", "train.max_steps: {trec: 4, tweets: 5}")
    runs = study(tmp_path, by_task).runs
    assert {(run.task, run.settings["train.max_steps"]) for run in runs} == {("trec", 4), ("tweets", 5)}
    assert {run.id for run in runs if run.task == "trec"} < {run.id for run in study(tmp_path).runs}  # as if alone
    with pytest.raises(ConfigError, match=r"train\.max_steps without tweets"):
        study(tmp_path, STUDY.replace("train.max_steps: 4", "train.max_steps: {trec: 4}"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("kind: lora", "kind: adapters", "kind: adapters; expected one of"), ("tasks:", "task: a\ntasks:", "yaml: task;")],
)
def test_what_a_study_does_not_know_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        study(tmp_path, STUDY.replace(old, new))


def record(task: str, method: str, rate: float, seed: int, validation: float, test: float) -> dict:
    settings = {"train.learning_rate": rate}
    return {
        "group": [task, method, str(rate)],
        **{"task": task, "method": method, "seed": seed, "settings": settings, "slots": "20/0/0", "seconds": 10.0},
        "validation": {"accuracy": validation, "loss": 1 - validation},
        "test": {"accuracy": test, "loss": 1 - test},
    }


RECORDS = [
    *(record("a", "ours", 0.1, seed, 0.8, test) for seed, test in enumerate([0.7, 0.8, 0.9])),
    *(record("a", "ours", 0.3, seed, 0.7, 0.99) for seed in range(3)),
    *(record("b", "ours", 0.1, seed, 0.8, 0.6) for seed in range(3)),
    *(record("a", "theirs", 1.0, seed, 0.8, 0.7) for seed in range(3)),
    *(record("b", "theirs", 1.0, seed, 0.8, 0.5) for seed in range(3)),
]


def test_the_rate_is_chosen_on_validation_rows() -> None:
    assert {each["settings"]["train.learning_rate"] for each in tables.chosen(RECORDS)["a", "ours"]} == {0.1}


def test_rates_are_compared_on_the_seeds_that_all_have() -> None:
    easy = record("a", "ours", 0.1, 1, 0.99, 0.7)  # a seed on which anything is good decides nothing
    found = [record("a", "ours", 0.1, 0, 0.6, 0.7), easy, record("a", "ours", 0.3, 0, 0.7, 0.8)]
    assert [each["settings"]["train.learning_rate"] for each in tables.chosen(found)["a", "ours"]] == [0.3]


def test_the_interval_is_students() -> None:
    values = [0.7, 0.8, 0.9]
    mean, half = tables.interval(values)
    assert mean == pytest.approx(0.8)
    assert half == pytest.approx(4.303 * torch.tensor(values).std().item() / 3**0.5, rel=1e-4)
    assert tables.interval([0.5]) == (0.5, None)


def test_tables_report_test_rows() -> None:
    lines = tables.accuracy_table(RECORDS)
    assert lines[2] == "| ours | 0.800 ± 0.248 | 0.600 ± 0.000 | 0.700 ± 0.124 | 10 |"
    assert lines[3] == "| theirs | 0.700 ± 0.000 | 0.500 ± 0.000 | 0.600 ± 0.000 | 10 |"
    assert tables.differences_table(RECORDS, "ours")[2] == (
        "| theirs | +0.100 ± 0.248 | +0.100 ± 0.000 | +0.100 ± 0.124 |"
    )
    assert len(tables.settings_table(RECORDS)) == 2 + 5


def test_what_a_newcomer_gets_is_shown_beside_no_prompt() -> None:
    whole = [{**each, "without": {"accuracy": 0.4}} for each in RECORDS[:3]]
    for each in whole:
        del each["validation"]
    assert tables.settings_table(whole)[2] == (
        "| a | ours | 20/0/0 | learning_rate 0.1 | 3 | 0.400 ± 0.000 |  | 0.800 ± 0.248 | 10 |"
    )
    assert len(tables.accuracy_table(whole)) == 3


def test_a_task_without_a_method_has_an_empty_cell() -> None:
    lines = tables.accuracy_table([each for each in RECORDS if (each["task"], each["method"]) != ("b", "theirs")])
    assert lines[3] == "| theirs | 0.700 ± 0.000 |  |  | 10 |"


def test_differences_are_taken_seed_by_seed() -> None:
    ours = [*RECORDS[:3], *(record("b", "ours", 0.1, seed, 0.8, 0.6 + seed / 10) for seed in range(3))]
    theirs = [*(record("a", "theirs", 1.0, seed, 0.8, 0.7) for seed in (1, 2))]
    theirs += [record("b", "theirs", 1.0, seed, 0.8, 0.5) for seed in range(3)]
    assert tables.differences_table([*ours, *theirs], "ours")[2].endswith("| +0.200 ± 0.635 |")  # 0.15 and 0.25
    assert tables.accuracy_table(theirs)[2].startswith("| theirs | 0.700 ± 0.000 | 0.500 ± 0.000 | 0.600 ± 0.000")


def test_a_study_without_seeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml without seeds; expected methods, model, seeds, tasks"):
        study(tmp_path, STUDY.replace("seeds: [0, 1]\n", ""))


def test_texts_stand_in_a_table_with_their_verdicts() -> None:
    def read(seed: int, verdict: str, **accuracies: float) -> dict:
        texts = [
            {"prompt": name, "accuracy": accuracy, "verdict": None if name == "soft" else verdict}
            for name, accuracy in accuracies.items()
        ]
        return {**record("a", "free", 0.1, seed, 0.8, 0.9), "verdict": "ECHO OF INIT", "texts": texts}

    both = [read(0, "PARTIAL", text=0.5, soft=0.9), read(1, "DECORATIVE", text=0.5, soft=0.9)]
    assert tables.texts_table([*both, *RECORDS[:1]])[2:] == [
        "| a | free | 0.500 ± 0.000 (1 x PARTIAL, 1 x DECORATIVE) | 0.900 ± 0.000 | 2 x ECHO OF INIT |"
    ]
