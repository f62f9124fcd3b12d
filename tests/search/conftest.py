"""Surrogates whose truth is known."""

import numpy as np
import pytest

from mapmerge_core.search.designs import make_design
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate


@pytest.fixture
def fitted():
    """fitted(A, b, e, link=..., ...) -> a surrogate fitted to exact values of link(e + bᵀc + ½ cᵀAc)."""

    def fit(A, b, e, **options):
        A, b = np.asarray(A, dtype=float), np.asarray(b, dtype=float)
        n = len(b)
        C = make_design("sobol", 3 * QuadraticSurrogate.n_parameters(n), n, anchors=False)
        z = np.array([e + b @ c + 0.5 * c @ A @ c for c in C])
        link = options.get("link", "identity")
        y = {"identity": z, "sigmoid": 1 / (1 + np.exp(-z)), "softplus": np.log1p(np.exp(z))}[link]
        return QuadraticSurrogate(**{"ridge": 0.0, **options}).fit(C, y)

    return fit


@pytest.fixture
def peak(fitted):
    """peak(at, height=1) -> height − |c − at|², an isotropic hill."""

    def build(at, height=1.0):
        at = np.asarray(at, dtype=float)
        return fitted(-2 * np.eye(len(at)), 2 * at, height - at @ at)

    return build
