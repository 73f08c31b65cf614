"""The measures that every inspection makes, in the order in which they are made and shown.

A new measure is a module with a function `measure` and a line here. Knows nothing of what they measure.
"""

from collections.abc import Mapping

from ptuning.inspection.measures import geometry, importance, ladder, nearest_tokens, token_sums, trajectory
from ptuning.inspection.measures.protocol import Measure

MEASURES: Mapping[str, Measure] = {
    nearest_tokens.NAME: nearest_tokens.measure,
    ladder.NAME: ladder.measure,
    geometry.NAME: geometry.measure,
    importance.NAME: importance.measure,
    trajectory.NAME: trajectory.measure,
    token_sums.NAME: token_sums.measure,
}
"""Name -> measure; a measure may use the results of those above it."""
