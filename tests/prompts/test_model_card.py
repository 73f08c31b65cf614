"""The table of results, for results of this version and of earlier ones."""

import dataclasses
import re
from typing import Any

import pytest
import yaml

from ptuning.data.task import Task
from ptuning.prompts.model_card import model_card, results_table

EARLIER = {"num_rows": 1600, "accuracy": 0.75, "interval": [0.728, 0.771], "loss": 0.25, "num_cut": 0}


def test_table_has_the_macro_f1_where_it_was_measured():
    classes = {**EARLIER, "macro_f1": 0.7, "label_log_loss": 0.5}
    assert results_table({"before": EARLIER, "now": classes}) == [
        "|        | rows  | accuracy | 95 % interval  | loss a token | macro-F1 |",
        "|--------|-------|----------|----------------|--------------|----------|",
        "| before | 1,600 | 0.750    | 0.728 to 0.771 | 0.250        | -        |",
        "| now    | 1,600 | 0.750    | 0.728 to 0.771 | 0.250        | 0.700    |",
    ]
    assert results_table({"before": EARLIER})[0] == "|        | rows  | accuracy | 95 % interval  | loss a token |"
    assert results_table({}) == []


def test_table_shows_what_is_undefined():
    nothing = {"num_rows": 0, "accuracy": None, "interval": [0.0, 1.0], "loss": None, "macro_f1": None}
    assert results_table({"no rows": nothing})[2] == "| no rows | 0    | -        | 0.000 to 1.000 | -            |"


FENCE = "```"
HOSTILE = {
    "a fence": Task(f"{{prompt:2}}{{text}}\n{FENCE}\n# planted\n{FENCE}`python"),
    "a column": Task('{prompt:2}{x", "planted}'),
    "an answer": Task("{prompt:2}{text}", "` # planted\n\n{label}"),
}


def card(task: Task, **changes: Any) -> str:
    own = {
        "num_virtual_tokens": 2,
        "width": 4,
        "task": dataclasses.asdict(task),
        "base": {"name": "base"},
        "training": {"data": {}},
        "results": {},
        "library_version": "1",
        **changes,
    }
    return model_card(own, "It leads.")


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_leaves_its_fence(what: str) -> None:
    lines = card(HOSTILE[what]).splitlines()
    fence = re.compile("(`{3,})(python)?")
    inside, outside = "", list[str]()
    for line in lines:
        opened = fence.fullmatch(line)
        if opened and inside in ("", opened[1]):
            inside = "" if inside else opened[1]
        elif not inside:
            outside.append(re.sub("(`+)[^`].*?[^`]\\1(?!`)", "", line))
    assert not inside
    assert not any("planted" in line for line in outside)
    snippet = next(line for line in lines if line.startswith("lm."))
    row = snippet[snippet.index("[") + 1 : snippet.index("], prompt=")]
    assert list(yaml.safe_load(row)) == list(dict.fromkeys(HOSTILE[what].columns[:1]))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/base-1.5", {"base_model": "org/base-1.5"}),
        ("base", {"base_model": "base"}),
        ('a: [b\n---\ntags: ["planted"]', {}),
        ("/home/me/base", {}),
        ("../base", {}),
    ],
)
def test_front_matter_is_yaml_and_names_a_base_that_the_hub_takes(name: str, shown: dict[str, str]) -> None:
    _, front, _ = re.split("^---$", card(Task("{prompt:2}{text}"), base={"name": name}), maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(front) == {"library_name": "ptuning", **shown, "tags": ["prompt-tuning", "p-tuning"]}
