"""What must be asked of a server to score every label after a row, and the scores that follow from its answers.

A label's score is the log-probability of all its tokens. Each token's is read after the row and the label's tokens
before it, so a row is read once for each different beginning of a label. Knows nothing of servers or embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_IDS = 128  # whose log-probabilities vLLM gives for one request
_MOST_BEGINNINGS = 16  # in one request: each is a whole row

Beginning = tuple[int, ...]
Found = Mapping[Beginning, Mapping[int, float]]
"""Beginning of a label -> token id -> its log-probability there."""


@dataclass(frozen=True)
class Question:
    """What one request asks."""

    beginnings: tuple[Beginning, ...]
    """The tokens that follow the row, in each of the request's prompts."""
    ids: tuple[int, ...]
    """The tokens whose log-probabilities are asked for, after each of them."""


class LabelPaths:
    """The labels' tokens as paths that share their beginnings.

    Args:
        label_ids: The token ids of each label's text.
    """

    def __init__(self, label_ids: Sequence[Sequence[int]]) -> None:
        self._label_ids = [tuple(each) for each in label_ids]
        children: dict[Beginning, dict[int, None]] = {}
        for ids in self._label_ids:
            for n in range(len(ids)):
                children.setdefault(ids[:n], {})[ids[n]] = None
        self.are_single = list(children) == [()]
        """Whether every label is one token."""
        self.questions = _packed({beginning: tuple(own) for beginning, own in children.items()})
        """The requests of a row; together they ask for every token of every label."""

    def log_probs(self, found: Found) -> list[float]:
        """The log-probability of each label's whole text, in nats."""
        return [sum(found[ids[:n]][ids[n]] for n in range(len(ids))) for ids in self._label_ids]


def _packed(children: Mapping[Beginning, tuple[int, ...]]) -> list[Question]:
    """As few requests as their limits allow."""
    questions = list[Question]()
    for beginning, own in children.items():
        for first in range(0, len(own), MOST_IDS):
            ids = own[first : first + MOST_IDS]
            last = questions[-1] if questions else Question((), ())
            together = tuple(dict.fromkeys((*last.ids, *ids)))
            is_new = beginning not in last.beginnings
            if questions and is_new and len(together) <= MOST_IDS and len(last.beginnings) < _MOST_BEGINNINGS:
                questions[-1] = Question((*last.beginnings, beginning), together)
            else:
                questions.append(Question((beginning,), ids))
    return questions
