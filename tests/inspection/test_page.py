"""The page is one file that fetches and runs nothing, says everything in words too, and fits on a phone."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import CLIPPED, FOLD, shown
from families import tiny_backbone
from synthetic import Names, drawn
from test_ladder import ROWS, TASK, tuned

from ptuning.inspection.page import page, write_page
from ptuning.inspection.report import Report, inspect
from ptuning.inspection.terminal import lines
from ptuning.inspection.verdict import WORDS
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run_directory import RunDirectory

FIGURES = ("ladder", "answers", "confusion", "decoding", "trajectory", "importance", "geometry", "atoms")
WIDTHS = (390, 768, 1400)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    backbone, run = tiny_backbone(std=0.4), RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    prompt = tuned(backbone)
    for step in (0, 5, 9):
        run.save_snapshot(step, prompt.embeddings_PH + step / 10)
        run.append_log({"step": step, "loss": 1.0 / (step + 1)})
    return inspect(prompt, backbone, [row.values for row in ROWS], k=3, run=run.path)


class Reader(HTMLParser):
    """Tags that are open, and what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.attributes = list[str](), list[str](), list[tuple[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_page_is_well_formed_and_refers_to_nothing_outside(report):
    reader = read(page(report, "runs/a"))
    assert "script" not in reader.tags
    links = [value for name, value in reader.attributes if name in ("src", "href", "action", "data")]
    assert links == ["data:,"]
    assert not re.search(r"https?:|url\((?!#)|@import", page(report))


def test_verdict_comes_first_and_every_figure_has_words(report):
    text = page(report)
    places = [text.index('id="verdict"'), *(text.index(f'<figure id="{name}">') for name in FIGURES)]
    assert places == sorted(places)
    assert text.count("<figcaption>") == len(FIGURES)
    drawings = re.findall(r"<svg [^>]*>", text)
    assert len(drawings) == 4
    assert all('role="img" aria-label="' in each for each in drawings)
    assert report.verdict.word in text
    for record in report.ladder.table:
        assert record["rung"] in text


def test_tokens_are_escaped():
    class Hostile(Names):
        def decode(self, ids: list[int]) -> str:
            return '<script>alert("&")</script>'

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [self.decode(row) for row in rows]

    backbone = tiny_backbone()
    tokenizer, backbone.tokenizer = backbone.tokenizer, Hostile()
    found = inspect(SoftPrompt(drawn(3, backbone.width), init={"token_ids": [5, 6, None]}), backbone)
    backbone.tokenizer = tokenizer
    text = page(found, "<b>name</b>")
    assert "script" not in read(text).tags
    assert "b" not in read(text).tags
    assert "&lt;script&gt;" in text


def test_page_without_rows_leaves_out_what_was_not_measured(backbone):
    text = page(inspect(SoftPrompt(torch.randn(4, backbone.width)), backbone))
    assert "NOT JUDGED" in text
    assert '<div id="advice"><h2>What to do</h2><p>Give rows with answers' in text
    assert [name for name in FIGURES if f'<figure id="{name}">' in text] == ["decoding", "geometry", "atoms"]
    read(text)


def test_page_is_written_whole(report, tmp_path: Path):
    path = write_page(report, tmp_path / "deep" / "report.html", "runs/a")
    assert path.read_text(encoding="utf-8") == page(report, "runs/a")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_report_shows_itself(report, tmp_path: Path):
    assert report.save_html(tmp_path / "report.html").read_text(encoding="utf-8") == page(report)
    assert str(report) == "\n".join(lines(report))
    frame = read(report._repr_html_())
    assert frame.tags == ["iframe"]
    assert html.unescape(re.search('srcdoc="(.*)"', report._repr_html_(), re.DOTALL)[1]) == page(report)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_shows_in_a_browser(report, tmp_path: Path, width: int, scheme: str):
    path = write_page(report, tmp_path / "report.html", "runs/a")
    with shown(path, width, scheme) as opened:
        assert report.verdict.word in opened.locator("#verdict").inner_text()
        if width == max(WIDTHS):
            for name in ("#verdict", "#advice", "#ladder svg"):
                box = opened.locator(name).bounding_box()
                assert box["y"] + box["height"] <= FOLD
        assert opened.evaluate(CLIPPED) == []
        for each in opened.locator("body > details > summary").all():
            each.click()
        assert opened.evaluate(CLIPPED) == []
        for name in FIGURES:
            box = opened.locator(f"#{name}").bounding_box()
            assert box["height"] > 40
        assert opened.evaluate("document.documentElement.scrollWidth") <= width  # it does not scroll aside


def test_equal_bars_are_one_and_chance_is_a_line(report):
    bars = report.ladder.chart
    names = [name for bar in bars.bars for name in bar.labels]
    assert sorted(names) == sorted(report.ladder.table.column("rung"))
    values = {record["rung"]: (record["accuracy"], record["loss"], record["rows"]) for record in report.ladder.table}
    for bar in bars.bars:
        assert len({values[name] for name in bar.labels}) == 1
    assert len({values[bar.labels[0]] for bar in bars.bars}) == len(bars.bars)
    assert bars.line == ("always the commonest label", 0.5)
    assert 'class="line"' in bars.svg()


def test_provenance_and_a_legend_stand_on_the_page(report):
    text = page(report)
    assert all(f"<dt>{word}</dt>" in text for word in WORDS)
    assert report.provenance["template"] == repr(TASK.template)
    assert report.provenance["inspected with"].startswith("ptuning ")
    assert report.provenance["judged on"] == f"{report.num_rows} rows of a program"
    assert report.verdict.effect in html.unescape(page(report))
    for name, value in report.provenance.items():
        assert f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" in text
