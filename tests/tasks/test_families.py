"""What is said of families before they are imported is what their classes say."""

from __future__ import annotations

import pytest

from mapmerge_core.tasks.families import FAMILIES, family_class, family_info
from mapmerge_core.tasks.metric import ACCURACY, LOSS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_facts_are_its_classs_own(name: str) -> None:
    info, family = FAMILIES[name], family_class(name)
    assert info.metrics == family.metrics
    assert info.gives_logits == family.gives_logits


def test_the_usual_metric_is_the_first() -> None:
    assert family_info("clip").metric == ACCURACY
    assert family_info("language").metric == LOSS
    assert family_info("mine:measure").metric is None
