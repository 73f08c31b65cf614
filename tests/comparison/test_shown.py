"""The page in a browser, on a phone and on a desk, light and dark: nothing is cut off, and what matters comes first."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CLIPPED, FOLD, shown
from test_recommendation import CHEAP, noisy

from ptuning.comparison.page import write_page
from ptuning.comparison.protocol import IndexCosts
from ptuning.comparison.recommendation import Needs, recommend
from ptuning.comparison.report import Comparison
from ptuning.comparison.results import Results, TextLoss
from ptuning.comparison.rules_of_thumb import WITH_CONTEXT, rules_of_thumb
from ptuning.comparison.ways import WAYS

WIDTHS = (390, 1400)


def comparison(directory: Path) -> Comparison:
    """All ways, with all that can be told of them."""
    chance, ways = random.Random(0), []
    for i, way in enumerate(WAYS):
        own = noisy(way.name, 0.55 + 0.03 * i, 500, i)
        curve = {size: [min(1.0, 0.4 + 0.05 * j + 0.01 * i) for _ in range(3)] for j, size in enumerate((16, 64, 256))}
        costs = replace(
            CHEAP,
            num_trained=10**i if way.facts.learns else 0,
            seconds=2.0**i,
            memory_bytes=10**6 * 3**i,
            bytes_to_ship=10**3 * 4**i,
            extra_tokens=chance.choice((0, 20, 700)),
            milliseconds=20 + 9 * chance.random() * i,
        )
        ways.append(
            replace(
                own,
                costs=costs,
                scores=[*own.scores, *noisy(way.name, 0.56 + 0.03 * i, 500, 50 + i).scores],
                curve=curve if way.reads_rows else {},
                chosen={"rate": "0.00033", "step": "288"} if way.facts.learns else {},
                index=IndexCosts(2_300_000, 0.4, 2.4) if way.name in WITH_CONTEXT else None,
                text_loss=TextLoss(3.5, 3.61) if way.name in ("lora", "last-block", "all-weights") else None,
                verdicts=[{"word": "NO EFFECT", "sentence": "…"}] if way.name == "prompt-tuning" else [],
            )
        )
    results, needs = Results(ways), Needs(many_tasks=True, most_milliseconds=90.0)
    about = {"base": "assets/smollm2-135m-instruct", "train rows": "4,000", "test rows": "500"}
    left = {"documents": "skipped: no compare.documents; expected a folder; name one"}
    asked = {"many_tasks": True, "most_milliseconds": 90.0}
    rules = rules_of_thumb(results, 4000)
    return Comparison(results, recommend(results, needs), left, about, directory, asked, rules)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "page.html"
    write_page(comparison(tmp_path), path)
    with shown(path, width, scheme) as opened:
        assert opened.evaluate(CLIPPED) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        if width == max(WIDTHS):
            for name in ("#recommendation", "#scores svg"):
                box = opened.locator(name).bounding_box()
                assert box["y"] + box["height"] <= FOLD, name
        assert all(each.bounding_box()["height"] > 40 for each in opened.locator("svg").all())
