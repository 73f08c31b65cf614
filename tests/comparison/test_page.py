"""The page tells what the tables tell, fetches nothing, and escapes whatever it is given."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from test_recommendation import way

from ptuning.comparison.page import page, write_page
from ptuning.comparison.recommendation import Needs, recommend
from ptuning.comparison.report import Comparison
from ptuning.comparison.results import Results
from ptuning.comparison.rules_of_thumb import Rule

HOSTILE = '<script>alert("x")</script>&\'"'


def comparison(name: str = "lora", directory: Path = Path()) -> Comparison:
    ways = [way("zero-shot", 0.5), replace(way("tf-idf", 0.7), name=name, chosen={name: name})]
    ways = [replace(each, curve={16: [0.5], 400: [0.6, 0.7]}) for each in ways]
    results, needs = Results(ways), Needs(least_accuracy=0.6)
    told = recommend(results, needs)
    return Comparison(results, told, {name: name}, {"base": name, name: name}, directory, {name: name})


def test_the_recommendation_stands_first_and_every_table_below() -> None:
    text = page(comparison())
    assert text.index("Take lora: accuracy 0.700") < text.index("<svg")
    for heading in ("Accuracy", "What each way costs", "Fewer training rows", "What is known of each way", "Left out"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("<svg") == 5  # bars, three plots of costs, curves
    assert not re.search(r"https?:|url\((?!#)|@import|<script", text)


def test_the_rules_are_told_with_what_they_leave_out() -> None:
    rules = [Rule("Fine-tune", "held", "numbers")]
    text = page(replace(comparison(), rules=rules))
    assert "Both sides are the best of a group, chosen on the same test rows, without correction." in text


def test_everything_is_escaped() -> None:
    text = page(comparison(HOSTILE))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    tags = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    Reader().feed(text)
    assert "script" not in tags


def test_all_tags_are_closed(tmp_path: Path) -> None:
    write_page(comparison(), tmp_path / "page.html")
    is_open: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link"):
                is_open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert is_open.pop() == tag

    Reader().feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert is_open == []
