"""Every behaviour on every family: `bash scripts/conformance.sh` prints them as a table."""

import pytest
from behaviours import BEHAVIOURS, Behaviour, NotApplicable
from families import FAMILIES
from systems import Ours


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda each: each.check.__name__)
def test_behaviour(behaviour: Behaviour, family: str) -> None:
    try:
        behaviour.check(Ours(family))
    except NotApplicable as reason:
        pytest.skip(str(reason))
