"""What a distillation came to: how much of the text's effect is kept, at what cost, beside the honest baselines.

Knows nothing of how sides are measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ptuning.distillation.measuring import Measured
from ptuning.distillation.sides import NONE, STUDENT, TEXT
from ptuning.evaluation import Estimate, Measure, Resampled, Table, aligned
from ptuning.files import whole_file
from ptuning.prompts import SoftPrompt

_MEASURE: Measure = "accuracy"  # what `Resampled` calls a score for which more is better
_COLUMNS = {
    "side": "what stands in front of each row",
    "tokens": "tokens of a request, on average",
    "score": "mean task score with its 95 % bootstrap interval over rows",
    "retention": "(score - no text) / (the text - no text) with its interval; - where the text is not shown to help",
    "agreement": "share of the rows that are answered as the text's",
    "KL": "divergence from the text's distributions, in nats a token of the answer",
    "ms": "milliseconds of a request by itself, nothing kept from earlier ones",
    "cache kB": "keys and values of a request's tokens in memory",
}


@dataclass(frozen=True)
class Distillation:
    """A distilled prompt, and what it was measured at."""

    prompt: SoftPrompt
    """The prompt."""
    directory: Path
    """Where all is kept; the prompt is in `prompt/`."""
    sides: Sequence[Measured]
    """The sides, each on the same rows."""
    about: Mapping[str, str]
    """What else to tell."""
    cache_bytes: int | None
    """What a token's keys and values take in memory; None: unknown."""

    @cached_property
    def _resampled(self) -> Resampled:
        return Resampled({each.side.name: each.scores for each in self.sides})

    def score(self, name: str) -> Estimate:
        """The mean task score of a side."""
        return self._resampled.mean(name, _MEASURE)

    @property
    def text_gain(self) -> Estimate:
        """How much the text adds to the score."""
        return self._resampled.gain(TEXT, NONE, _MEASURE)

    def retention(self, name: str = STUDENT) -> Estimate:
        """The share of the text's gain that a side keeps; undefined where the text is not shown to help."""
        return self._resampled.kept(name, TEXT, NONE, _MEASURE)

    @cached_property
    def table(self) -> Table:
        """A record a side."""
        return Table(_COLUMNS, [self._record(each) for each in self.sides])

    def _record(self, each: Measured) -> dict[str, Any]:
        name = each.side.name
        has_share = name not in (NONE, TEXT)
        cache = None if self.cache_bytes is None else self.cache_bytes * each.num_tokens / 1000
        return {
            "side": name,
            "tokens": each.num_tokens,
            "score": self.score(name).as_dict(),
            "retention": self.retention(name).as_dict() if has_share else None,
            "agreement": float(each.agrees_N.mean()),
            "KL": float(each.divergence_N.mean()),
            "ms": each.milliseconds,
            "cache kB": cache,
        }

    def lines(self) -> list[str]:
        """For a terminal: the sentence that matters, the table, and what it holds."""
        cells = [list(_COLUMNS)] + [self._cells(each) for each in self.table]
        notes = [f"{each.side.name}: {each.side.note}" for each in self.sides if each.side.note]
        about = [f"{name}: {value}" for name, value in self.about.items()]
        legend = [f"{name}: {meaning}" for name, meaning in _COLUMNS.items()]
        return [self.sentence, "", *aligned(cells), "", *notes, *about, "", *legend]

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        gain, kept = self.text_gain, self.retention()
        by_name = {each.side.name: each for each in self.sides}
        saved = by_name[TEXT].num_tokens - by_name[STUDENT].num_tokens
        if kept.value is None:
            return (
                f"The text is not shown to help (it adds {gain} to the score), so there is nothing to keep; the prompt "
                f"agrees with it on {by_name[STUDENT].agrees_N.mean():.0%} of the rows with {saved:.0f} tokens less."
            )
        return (
            f"The prompt keeps {kept.percent} of what the text adds ({gain}), with {saved:.0f} tokens less a request."
        )

    @staticmethod
    def _cells(record: Mapping[str, Any]) -> list[str]:
        score, kept, cache = Estimate(**record["score"]), record["retention"], record["cache kB"]
        share = "-" if kept is None or kept["value"] is None else str(Estimate(**kept))
        numbers = [f"{record['agreement']:.3f}", f"{record['KL']:.3f}", f"{record['ms']:.0f}"]
        own = [str(score), share, *numbers, "-" if cache is None else f"{cache:,.0f}"]
        return [record["side"], f"{record['tokens']:.0f}", *own]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "sentence": self.sentence,
            "text_gain": self.text_gain.as_dict(),
            "sides": self.table.as_dict(),
            "notes": {each.side.name: each.side.note for each in self.sides if each.side.note},
            "about": dict(self.about),
        }

    def save(self) -> Path:
        """Writes distillation.json."""
        path = self.directory / "distillation.json"
        with whole_file(path) as beside:
            beside.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        return path
