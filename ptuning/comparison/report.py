"""A whole comparison, as tables for a terminal, as JSON and as CSV.

Knows nothing of how ways are fitted.
"""

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ptuning.comparison.measures import MEANINGS
from ptuning.comparison.recommendation import Recommendation
from ptuning.comparison.results import Results, WayResult
from ptuning.comparison.rules_of_thumb import Rule
from ptuning.evaluation import Table, aligned, half_width
from ptuning.files import whole_file

ZERO_SHOT = "zero-shot"
_LINE = 120  # characters of a line of text
_INDENT = 10
_QUALITY = {
    "over seeds": "half of Student's 95 % interval of the mean over seeds; - with one seed",
    "seeds": "seeds; ways that do not depend on chance have one",
    "against zero-shot": "paired difference on the same rows, with its 95 % interval",
    "against the best": "the same against the best way",
    "chosen": "what validation rows chose, with the first seed",
}
_COSTS = {
    "way": "the way's name",
    "parameters": "parameters that were fitted",
    "seconds": "seconds until it could answer, choices on validation rows included",
    "memory MB": "the most memory that fitting took beside what was in use before",
    "ship MB": "what is shipped beside the base",
    "tokens": "tokens that it adds to a request, on average",
    "forgets": "loss of a token of a general text, in nats, less that of the base; nothing: the base stays as it is",
    "ms": "milliseconds of a request by itself, nothing kept from earlier ones",
    "rows/s": "rows a second, 32 at once",
}
_INDEXES = {
    "way": "the way's name",
    "index MB": "what its index takes in memory",
    "built in s": "seconds that building the index took",
    "look-up ms": "milliseconds until it is found what stands in front of one row, its own reading included",
}
_FACTS = {
    "way": "the way's name",
    "many tasks": "whether one copy of the base serves many tasks at once",
    "new rows": "whether a new row counts at once",
    "readable": "whether a person can read what makes the answers; in brackets the inspector's verdict on soft prompts",
    "vLLM": "whether it works behind vLLM as it is",
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison gives."""

    results: Results
    """The ways that could be measured."""
    recommendation: Recommendation
    """Which one to take."""
    left_out: Mapping[str, str]
    """Way -> the line that says why it was skipped or failed."""
    about: Mapping[str, str]
    """What was compared, in words."""
    directory: Path
    """Where the files lie."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """What the recommendation was asked for."""
    rules: Sequence[Rule] = ()
    """How rules of thumb fared."""
    incomplete: Mapping[str, str] = field(default_factory=dict)
    """Way -> the line that says which of its parts failed, for ways that were measured without them."""

    def quality(self) -> Table:
        """How good each way is."""
        results, names = self.results, self.results.names
        best, records, measure = results.best(names), [], results.measure
        columns = {
            "way": "the way's name",
            measure: f"{MEANINGS[measure]}, with a 95 % bootstrap interval over test rows and seeds",
            **{name: MEANINGS[name] for name in results.other_measures},
            **_QUALITY,
        }
        for way in results.ways:
            records.append(
                {
                    "way": way.name,
                    measure: str(results.score(way.name)),
                    **{name: _mean_alone(way.other_scores.get(name, ())) for name in results.other_measures},
                    "over seeds": _half(way.spread),
                    "seeds": len(way.scores),
                    "against zero-shot": self._against(way.name, ZERO_SHOT if ZERO_SHOT in names else None),
                    "against the best": self._against(way.name, best),
                    "chosen": ", ".join(f"{key} {value}" for key, value in way.chosen.items()),
                }
            )
        return Table(columns, records)

    def _against(self, name: str, other: str | None) -> str:
        return "" if other in (None, name) else str(self.results.gain(name, other or ""))

    def costs(self) -> Table:
        """What each way costs."""
        return Table(_COSTS, [_costs(way) for way in self.results.ways])

    def indexes(self) -> Table | None:
        """What the indexes cost of ways that look things up; None where there are none."""
        records = [
            {
                "way": way.name,
                "index MB": f"{way.index.num_bytes / 1e6:,.3f}",
                "built in s": f"{way.index.seconds:,.3f}",
                "look-up ms": f"{way.index.milliseconds:,.2f}",
            }
            for way in self.results.ways
            if way.index is not None
        ]
        return Table(_INDEXES, records) if records else None

    def facts(self) -> Table:
        """What is known of each way."""
        records = []
        for way in self.results.ways:
            facts = way.facts
            told = (facts.many_tasks, facts.rows_count_at_once, facts.readable, facts.works_in_vllm)
            said = [f"{'yes' if each.is_so else 'no'}: {each.reason}" for each in told]
            records.append(dict(zip(_FACTS, [way.name, *said], strict=True)))
            records[-1]["readable"] += _bracketed(way, "here ")
        return Table(_FACTS, records)

    def curve(self) -> Table | None:
        """The main score on fewer training rows; None where it was not measured."""
        sizes = sorted({size for way in self.results.ways for size in way.curve})
        if not sizes:
            return None
        told_of = {str(size): f"{self.results.measure} with {size} training rows" for size in sizes}
        columns = {"way": "the way's name", **told_of}
        records = []
        for way in self.results.ways:
            if way.curve:
                told = {str(size): _mean(way.curve.get(size, ())) for size in sizes}
                records.append({"way": way.name, **told})
        return Table(columns, records)

    def lines(self) -> list[str]:
        """The comparison for a terminal, the recommendation first."""
        found = textwrap.wrap(self.recommendation.sentence, _LINE)
        found += [*(f"  {each}" for each in self.recommendation.reasons), ""]
        tables = [self.quality(), self.costs(), *(each for each in (self.indexes(), self.curve()) if each)]
        for table in tables:
            found += [*_aligned(table), ""]
        yes = [{**each, **{k: v.partition(":")[0] for k, v in each.items() if k != "way"}} for each in self.facts()]
        for each in yes:
            each["readable"] += _bracketed(self.results[each["way"]])
        found += [*_aligned(Table(_FACTS, yes)), ""]
        for rule in self.rules:
            told = f"{rule.outcome:<{_INDENT}}{rule.says}: {rule.why}"
            found += textwrap.wrap(told, _LINE, subsequent_indent=_INDENT * " ")
        found += [""] if self.rules else []
        found += [f"{name} is incomplete: {why}" for name, why in self.incomplete.items()]
        found += [f"{name} is left out: {why}" for name, why in self.left_out.items()]
        return [*found, "; ".join(f"{key}: {value}" for key, value in self.about.items())]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        names = self.results.names
        best = self.results.best(names)
        return {
            "about": dict(self.about),
            "needs": dict(self.needs),
            "measure": self.results.measure,
            "recommendation": dataclasses.asdict(self.recommendation),
            "ways": {name: self._way(self.results[name], best) for name in names},
            "left_out": dict(self.left_out),
            "incomplete": dict(self.incomplete),
            "rules_of_thumb": [dataclasses.asdict(rule) for rule in self.rules],
        }

    def _way(self, way: WayResult, best: str) -> dict[str, Any]:
        results = self.results
        has_zero_shot = ZERO_SHOT in results.names and way.name != ZERO_SHOT
        return {
            "title": way.title,
            "score": results.score(way.name).as_dict(),
            "seed_scores": way.seed_scores,
            "other_scores": {name: list(values) for name, values in way.other_scores.items()},
            "half_width_over_seeds": way.spread,
            "against_zero_shot": results.gain(way.name, ZERO_SHOT).as_dict() if has_zero_shot else None,
            "against_the_best": results.gain(way.name, best).as_dict() if way.name != best else None,
            "costs": dataclasses.asdict(way.costs),
            "index": None if way.index is None else dataclasses.asdict(way.index),
            "forgets": _forgets(way),
            "facts": dataclasses.asdict(way.facts),
            "verdicts": [dict(each) for each in way.verdicts],
            "chosen": dict(way.chosen),
            "curve": {str(size): list(values) for size, values in way.curve.items()},
        }

    def csv(self) -> str:
        """One line a way."""
        results, written = self.results, io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        columns, others = [each.name for each in dataclasses.fields(results.ways[0].costs)], results.other_measures
        writer.writerow(["way", results.measure, "low", "high", "seeds", *others, *columns, "forgets"])
        for way in results.ways:
            told, costs = results.score(way.name), [getattr(way.costs, column) for column in columns]
            means = [mean(way.other_scores[name]) if name in way.other_scores else "" for name in others]
            scores = [told.value, told.low, told.high, len(way.scores), *means]
            writer.writerow([way.name, *scores, *costs, _forgets(way)["change"]])
        return written.getvalue()

    def save(self) -> None:
        """Writes comparison.json and comparison.csv."""
        texts = {"comparison.json": json.dumps(self.as_dict(), indent=2) + "\n", "comparison.csv": self.csv()}
        for name, text in texts.items():
            with whole_file(self.directory / name) as beside:
                beside.write_text(text, encoding="utf-8", newline="\n")


def _costs(way: WayResult) -> dict[str, Any]:
    costs = way.costs
    memory = "-" if costs.memory_bytes is None else f"{costs.memory_bytes / 1e6:,.0f}"
    return {
        "way": way.name,
        "parameters": f"{costs.num_trained:,}",
        "seconds": f"{costs.seconds:,.1f}",
        "memory MB": memory,
        "ship MB": f"{costs.bytes_to_ship / 1e6:,.3f}",
        "tokens": f"{costs.extra_tokens:,.0f}",
        "forgets": "nothing" if way.text_loss is None else f"{way.text_loss.change:+.3f}",
        "ms": f"{costs.milliseconds:,.1f}",
        "rows/s": f"{costs.rows_per_second:,.1f}",
    }


def _forgets(way: WayResult) -> dict[str, Any]:
    """The general text's losses; a base that stays as it is forgets exactly nothing."""
    if way.text_loss is None:
        return {"changes_the_base": False, "loss_before": None, "loss_after": None, "change": 0.0}
    told = way.text_loss
    losses = {"loss_before": told.before, "loss_after": told.after, "change": told.change}
    return {"changes_the_base": True, **losses}


def _bracketed(way: WayResult, before: str = "") -> str:
    """The inspector's verdict behind a cell; nothing where there is none."""
    return f" ({before}{way.verdict})" if way.verdict else ""


def _half(value: float | None) -> str:
    return "-" if value is None else f"± {value:.3f}"


def _mean_alone(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" if values else ""


def _mean(values: Sequence[float]) -> str:
    """A mean with half of its interval over seeds."""
    if not values:
        return ""
    half = half_width(values)
    return _mean_alone(values) + ("" if half is None else f" ± {half:.3f}")


def _aligned(table: Table) -> list[str]:
    """A table as lines; what a way is and what was chosen stand to the left."""
    cells = [list(table.columns), *([str(each[name]) for name in table.columns] for each in table)]
    return aligned(cells, left=[0, *(i for i, name in enumerate(table.columns) if name == "chosen")])
