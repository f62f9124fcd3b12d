"""What is said of families before they are imported is what their classes say."""

from __future__ import annotations

import pytest
import torch
from mapmerge_core.tasks.families.images import ImageClassifier

from mapmerge_core.tasks.families import FAMILIES, family_class, family_info
from mapmerge_core.tasks.metrics import ACCURACY, LOSS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_facts_are_its_classs_own(name: str) -> None:
    info, family = FAMILIES[name], family_class(name)
    assert info.metrics == family.metrics
    assert info.gives_logits == family.gives_logits


def test_images_are_normalised_in_float32_whatever_other_threads_build() -> None:
    class Plain(ImageClassifier):
        head = logits = class_logits = lambda *_: None

        def model_in(self, _dtype: torch.dtype) -> torch.nn.Module:
            return torch.nn.Module()

    torch.set_default_dtype(torch.bfloat16)  # as transformers does, for all threads, while it builds a model
    try:
        family = Plain((2, 2), (), "", [0.481] * 3, [0.269] * 3)
    finally:
        torch.set_default_dtype(torch.float32)
    black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    torch.testing.assert_close(family.normalise(black), torch.full((1, 3, 2, 2), -0.481 / 0.269))


def test_the_usual_metric_is_the_first() -> None:
    assert family_info("clip").metric == ACCURACY
    assert family_info("language").metric == LOSS
    assert family_info("mine:measure").metric is None
