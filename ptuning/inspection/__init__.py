"""What a prompt means, as far as that can be told: a verdict, measures, and the page and lines that show them.

Each module in `measures` looks at one thing; `vocabulary` holds what they compare with. Knows nothing of the command
line.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.inspection.hardening import Hardened as Hardened
    from ptuning.inspection.hardening import Search as Search
    from ptuning.inspection.hardening import harden as harden
    from ptuning.inspection.hardening import price_lines as price_lines
    from ptuning.inspection.measures.stability import stability as stability
    from ptuning.inspection.measures.verbalise import require_layers as require_layers
    from ptuning.inspection.measures.verbalise import verbalise as verbalise
    from ptuning.inspection.measures.wayward import Settings as Settings
    from ptuning.inspection.measures.wayward import wayward as wayward
    from ptuning.inspection.report import Report as Report
    from ptuning.inspection.report import inspect as inspect
    from ptuning.inspection.report import verdict_of as verdict_of
    from ptuning.inspection.terminal import lines as lines
    from ptuning.inspection.terminal import table_lines as table_lines
    from ptuning.inspection.verdict import DECORATIVE as DECORATIVE
    from ptuning.inspection.verdict import ECHO as ECHO
    from ptuning.inspection.verdict import FAITHFUL as FAITHFUL
    from ptuning.inspection.verdict import NO_EFFECT as NO_EFFECT
    from ptuning.inspection.verdict import PARTIAL as PARTIAL
    from ptuning.inspection.vocabulary.embeddings import Vocabulary as Vocabulary

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "hardening": ("Hardened", "Search", "harden", "price_lines"),
        "measures.stability": ("stability",),
        "measures.verbalise": ("require_layers", "verbalise"),
        "measures.wayward": ("Settings", "wayward"),
        "report": ("Report", "inspect", "verdict_of"),
        "terminal": ("lines", "table_lines"),
        "verdict": ("DECORATIVE", "ECHO", "FAITHFUL", "NO_EFFECT", "PARTIAL"),
        "vocabulary.embeddings": ("Vocabulary",),
    },
)
