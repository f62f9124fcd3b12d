from __future__ import annotations

import pytest

from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges._training_settings import Training


def test_the_defaults_are_the_papers():
    training = Training()
    assert (training.steps, training.batch_size, training.lr, training.rank) == (2000, 32, 1e-3, 16)
    assert (training.start, training.concentration, training.beta_cos, training.beta_norm) == (0.3, 1, 0.1, 1)
    assert training.scalarisation == "smooth_tchebycheff"
    assert training.balance == 0
    assert not training.data_free


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "at least 1 step, not 0"),
        ({"batch_size": 0}, "at least 1 image in a batch, not 0"),
        ({"rank": 0}, "at least 1 rank, not 0"),
        ({"lr": 0}, "lr must be above 0, not 0"),
        ({"mu": -0.1}, "mu must be above 0, not -0.1"),
        ({"concentration": float("nan")}, "concentration must be above 0, not nan"),
        ({"concentration": float("inf")}, "concentration must be above 0, not inf"),
        ({"beta_cos": -1}, "beta_cos must be 0 or more, not -1"),
        ({"beta_norm": float("nan")}, "beta_norm must be 0 or more, not nan"),
        ({"balance": -0.5}, "balance must be 0 or more, not -0.5"),
        ({"start": float("inf")}, "start must be a finite number, not inf"),
        ({"scalarisation": "worst"}, "There is no scalarisation 'worst': choose smooth_tchebycheff or"),
        ({"personalised": ()}, "Name the tensors to personalise"),
        ({"personalised": ("attn.*", " ")}, "Name the tensors to personalise"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, sentence):
    with pytest.raises(MapMergeError, match=sentence):
        Training(**changes)
