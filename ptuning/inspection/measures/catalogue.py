"""The measures that every inspection makes, in the order in which they are made, and the places where they are shown.

A new measure is a module with a function `measure` and a line here. Knows nothing of what they measure.
"""

from collections.abc import Mapping

from ptuning.inspection.measures import answers, geometry, importance, ladder, nearest_tokens, token_sums, trajectory
from ptuning.inspection.measures.protocol import Measure

MEASURES: Mapping[str, Measure] = {
    nearest_tokens.NAME: nearest_tokens.measure,
    ladder.NAME: ladder.measure,
    answers.NAME: answers.measure,
    answers.CONFUSION: answers.measure_confusion,
    geometry.NAME: geometry.measure,
    importance.NAME: importance.measure,
    trajectory.NAME: trajectory.measure,
    token_sums.NAME: token_sums.measure,
}
"""Name -> measure; a measure may use the results of those above it."""
BESIDE_THE_VERDICT = ladder.NAME
"""What a page shows beside the verdict."""
OPEN = (answers.NAME, answers.CONFUSION, nearest_tokens.NAME, trajectory.NAME, importance.NAME)
"""What it shows below it, in this order; all others are folded away, for specialists."""
