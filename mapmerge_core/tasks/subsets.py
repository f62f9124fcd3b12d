"""Parts of a split: which examples are measured first, and how far off the whole split's metric may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nested_order(strata: NDArray[Any] | None, n: int, seed: int = 0) -> NDArray[np.intp]:
    """Return an order of a split's examples of which every beginning is a sample of the whole.

    Systematic sampling, stratified: of a class with N_h examples, shuffled, the j-th has the key (j + u_h) / N_h with
    one u_h, uniform in [0, 1), and the examples are sorted by their keys. Up to any key t a class has N_h t examples,
    give or take less than one. Every example is as likely as any other to be among the first, so that their mean is an
    unbiased estimate of the split's; and a longer beginning holds every shorter one.

    Args:
        strata: Each example's class (n,); None for a plain permutation.
        n: How many examples the split has.
        seed: The same one gives the same order on every machine.

    Returns:
        A permutation of 0, ..., n - 1.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if strata is None:
        return rng.permutation(n).astype(np.intp, copy=False)
    keys = np.empty(n)
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        keys[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(keys, kind="stable")


def standard_error(per_example: NDArray[Any], n_total: int | None = None) -> float | None:
    """Return the standard error of the mean of n examples.

    Of some of N examples, taken as `nested_order` has them, as an estimate of the mean of all: sqrt(s² / n ·
    (1 - n / N)), that of a simple random sample without replacement (Cochran, "Sampling Techniques", 1977,
    Theorem 2.2), which a stratified sample is at least as good as; 0 for all of them. Without N as an
    estimate of the mean of all data like these. For right or wrong s² is p(1 - p) with p = (k + 1) / (n + 2)
    for k of n that are right (Laplace's rule of succession), so that it isn't 0 where all of them are.

    Args:
        per_example: Right or wrong (bool), or losses, of n examples.
        n_total: N, how many examples the split has.

    Returns:
        None for a single loss, which says nothing about others.
    """
    n = len(per_example)
    if n_total is not None and n >= n_total:
        return 0.0
    if per_example.dtype == np.bool_:
        p = (per_example.sum() + 1) / (n + 2)
        variance = p * (1 - p)
    elif n < 2:
        return None
    else:
        variance = per_example.var(dtype=np.float64, ddof=1)
    return float(np.sqrt(variance / n * (1 - n / (n_total or np.inf))))
