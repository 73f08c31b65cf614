"""The results of an evaluation as lines for people.

Knows nothing of rows or models.
"""

from collections.abc import Mapping, Sequence

from ptuning.evaluation.classes import class_report
from ptuning.evaluation.metrics import Metrics
from ptuning.evaluation.written import WrittenMetrics
from ptuning.prompts import results_table


def results_report(
    results: Mapping[str, Metrics], labels: Sequence[str] = (), written: Mapping[str, WrittenMetrics] | None = None
) -> list[str]:
    """The table of results, then a part for each side.

    Args:
        results: Side -> metrics.
        labels: The labels' names; none where answers are written.
        written: Side -> what its generated answers were measured at.
    """
    lines = results_table({name: each.as_dict() for name, each in results.items()})
    for name, each in results.items():
        if labels:
            lines += ["", f"{name}:", *class_report(each, labels)]
        elif written and name in written:
            lines += ["", f"{name}: {written[name]}"]
    return lines
