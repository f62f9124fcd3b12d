"""Where to sample next: angular bins, scored by the surrogates' errors (MAP, Algorithm 4 and Appendix G.3).

What the paper leaves open, and how it is filled here:

- Points are taken to the unit cube first (``Space.to_unit``), and the spheres are centred on its origin: of a
  box that is its low corner, the origin itself for boxes that start at 0, as the paper's. Each angle is then
  in [0, 90°].
- Bins are closed on the left, the last one on both sides: points on an axis belong to the first or the last
  bin of each angle. The corner itself has no direction and belongs to no bin.
- There are about as many joint bins as a surrogate has parameters, but at least two per angle: 6 for two task
  vectors, 9 for three, 8 for four. From five on most bins stay empty and sampling turns into spreading, which
  is why the paper recommends the method for N ≤ 4. Only bins that hold points are ever listed.
- A bin without points can't be scored; the largest score of the others stands in for it, so that no bin is
  likelier. Where no bin can be scored, all are equally likely.
- Scores are squared errors of any magnitude, which a softmax would turn into equal shares or into all and nothing:
  they are standardised first (less their mean, over their standard deviation).
- Inside a bin a point is the one of ``CANDIDATES``, uniform in the volume of bin and box, that is farthest
  from all points so far. A bin sees directions alone, and this spreads the radii.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array

Cells = NDArray[np.int64]

BOOTSTRAPS = 30
"""Q, the bootstrap draws of a bin's mean error (Algorithm 4)."""
DROPPED = 0.2
"""α, the share of a bin's points that each of them drops (Algorithm 4)."""
CANDIDATES = 64
"""Points drawn in a bin, of which the farthest from all others is taken (``BayesianMAP`` has figures)."""
DIRECTIONS = 256
"""Directions drawn in a bin, of which the candidates' are chosen in proportion to their volume."""


@dataclass(frozen=True)
class AngularBins:
    """The unit cube of n dimensions, cut along the n - 1 angles of the spheres about the origin (Figure 11).

    The angles are φ_i = atan2(|(u_{i+1}, ..., u_n)|, u_i), each in [0, π/2], and 0 where both are 0. A bin is
    n - 1 numbers from 0 to K - 1, one for each angle.

    Args:
        n: Dimensions, at least one; one has no angle, and a single bin.
        per_angle: K, the equal parts of each angle, at least one.
    """

    n: int
    per_angle: int

    @property
    def count(self) -> int:
        """Joint bins, K^(N - 1)."""
        return int(self.per_angle ** (self.n - 1))

    def locate(self, U: Array) -> Cells:
        """Return the bins of `m x n` points of the unit cube, `m x (n - 1)`; rows of -1 for points at the origin."""
        # |(u_i, ..., u_n)| for each i, by sums from the end.
        tails = np.sqrt(np.cumsum(U[:, ::-1] ** 2, axis=1))[:, ::-1]
        angles = np.arctan2(tails[:, 1:], U[:, :-1])
        cells = np.minimum((angles / (np.pi / 2) * self.per_angle).astype(np.int64), self.per_angle - 1)
        cells[(U == 0).all(axis=1)] = -1
        return cells

    def draw(self, cell: Cells, size: int, rng: np.random.Generator) -> Array:
        """Return `size x n` points, uniform in the volume of a bin (n - 1 numbers) within the cube.

        ``DIRECTIONS`` directions are drawn with uniform angles, and chosen from in proportion to the volume
        that they stand for: the sphere's element times R^n, where R is the way to the cube's border. The
        radius is R v^(1/n), v uniform.
        """
        n = self.n
        angles = (cell + rng.random((DIRECTIONS, n - 1))) / self.per_angle * (np.pi / 2)
        sines = np.cumprod(np.sin(angles), axis=1)
        one = np.ones((DIRECTIONS, 1))
        ways = np.hstack([one, sines]) * np.hstack([np.cos(angles), one])
        reach = 1 / ways.max(axis=1)
        # The columns of sines but the last multiply to Π sin^(N-1-i) φ_i, the sphere's element.
        volume = n * np.log(reach) + np.log(sines[:, :-1]).sum(axis=1)
        share = np.exp(volume - volume.max())
        chosen = rng.choice(DIRECTIONS, size, p=share / share.sum())
        radius = reach[chosen] * rng.random(size) ** (1 / n)
        return np.asarray(np.minimum(radius[:, None] * ways[chosen], 1.0))


def bins_per_angle(n: int) -> int:
    """Return K for n dimensions: the largest for which K^(n - 1) is at most (n + 1)(n + 2) / 2, but at least 2."""
    most = (n + 1) * (n + 2) // 2
    per_angle = 2
    while n > 1 and (per_angle + 1) ** (n - 1) <= most:
        per_angle += 1
    return per_angle


def score_bins(errors: Array, cells: Cells, rng: np.random.Generator) -> tuple[Cells, Array]:
    """Return each bin's mean error plus one half of its bootstrap standard deviation (Algorithm 4, lines 13 to 19).

    Each of the ``BOOTSTRAPS`` draws drops ``DROPPED`` of the bin's points, rounded up so that small bins have
    a deviation too, but keeps at least one.

    Args:
        errors: Squared errors (n,); NaN for points whose error is unknown, which are left out.
        cells: Their bins, `m x (n - 1)`, as ``AngularBins.locate`` has them; points without a bin are left
            out.
        rng: What draws.

    Returns:
        The bins that have a score, `m x (n - 1)` in lexicographic order, and their scores (m,).
    """
    counts = np.isfinite(errors) & (cells >= 0).all(axis=1)
    squared = errors[counts]
    scored, member = np.unique(cells[counts], axis=0, return_inverse=True)
    scores = np.empty(len(scored))
    for k in range(len(scored)):
        inside = squared[member.reshape(-1) == k]
        dropped = min(int(np.ceil(DROPPED * len(inside))), len(inside) - 1)
        draws = rng.permuted(np.tile(inside, (BOOTSTRAPS, 1)), axis=1)[:, dropped:].mean(axis=1)
        scores[k] = inside.mean() + 0.5 * draws.std()
    return scored, scores


def bin_probabilities(scores: Array, n_bins: int) -> Array:
    """Return the softmax of standardised scores (m,) among ``n_bins``; those without a score count as the largest."""
    if len(scores) == 0:
        return scores
    spread = scores.std()
    # The largest is 1 after the exponential, as is each bin without a score.
    weights = np.exp((scores - scores.max()) / (spread if spread > 1e-9 * scores.max() else 1.0))
    return np.asarray(weights / (weights.sum() + (n_bins - len(scores))))


def draw_bin(bins: AngularBins, scored: Cells, probabilities: Array, rng: np.random.Generator) -> Cells:
    """Draw one bin (n - 1,), with probabilities for those scored; the others share the rest equally."""
    place = rng.random()
    for cell, probability in zip(scored, probabilities, strict=True):
        place -= probability
        if place < 0:
            return np.asarray(cell)
    if len(scored) == bins.count:  # rounding left the probabilities a hair below 1
        return np.asarray(scored[-1])
    while True:
        cell = rng.integers(bins.per_angle, size=bins.n - 1)
        if not (scored == cell).all(axis=1).any():
            return np.asarray(cell)


def draw_points(
    bins: AngularBins, scored: Cells, scores: Array, n_points: int, asked: Array, rng: np.random.Generator
) -> Array:
    """Return the next points of the unit cube, `n_points x n`, one after the other and each away from all before it.

    Args:
        bins: The bins.
        scored: Those that have a score, `m x (n - 1)`.
        scores: Their scores (m,).
        n_points: The number of points.
        asked: Points that were asked before, `m x n`; none of them is asked again.
        rng: What draws.
    """
    probabilities = bin_probabilities(scores, bins.count)
    points = asked
    for _ in range(n_points):
        candidates = bins.draw(draw_bin(bins, scored, probabilities, rng), CANDIDATES, rng)
        gaps = ((candidates[:, None] - points[None]) ** 2).sum(axis=2).min(axis=1)
        points = np.vstack([points, candidates[np.argmax(gaps)]])
    return points[len(asked) :]
