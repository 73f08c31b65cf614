"""The results of an evaluation as lines for people.

Knows nothing of rows or models.
"""

from collections.abc import Mapping, Sequence

from ptuning.evaluation.classes import class_report, only_label
from ptuning.evaluation.comparison import Comparison
from ptuning.evaluation.scoring import WITH, WITHOUT, Evaluation
from ptuning.evaluation.written import WrittenMetrics
from ptuning.prompts import results_table


def results_report(
    results: Mapping[str, Evaluation], labels: Sequence[str] = (), written: Mapping[str, WrittenMetrics] | None = None
) -> list[str]:
    """What the results say in sentences, their table, then a part for each side.

    Args:
        results: Side -> what it comes to.
        labels: The labels' names; none where answers are written.
        written: Side -> what its generated answers were measured at.
    """
    lines = _sentences(results, labels)
    lines += results_table({name: each.metrics.as_dict() for name, each in results.items()})
    for name, each in results.items():
        if labels:
            lines += ["", f"{name}:", *class_report(each.metrics, labels)]
        elif written and name in written:
            lines += ["", f"{name}: {written[name]}"]
    return lines


def _sentences(results: Mapping[str, Evaluation], labels: Sequence[str]) -> list[str]:
    """Whether the prompt is shown to be better, and which side gives all rows one label; then an empty line."""
    lines = []
    if WITH in results and WITHOUT in results:
        comparison = Comparison.of(results[WITH].scores, results[WITHOUT].scores, bool(labels))
        shown = "is shown to be better" if comparison.is_better else "is not shown to be better"
        lines.append(f"The prompt {shown} than the same words without it: {comparison}.")
    for name, each in results.items():
        label = only_label(each.metrics, labels)
        if label is not None:
            lines.append(f"{name}: every row is given the label {label}; its accuracy is that label's share.")
    return [*lines, ""] if lines else []
