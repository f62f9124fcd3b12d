"""From a study's evaluations to surrogates, a front, and a choice on it, for pages and command line alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.methods.catalogue import SEARCHES
from mapmerge_core.search.fronts import GENERATIONS, Front, find_front
from mapmerge_core.search.preferences import Scalarisation, choose_by_preference
from mapmerge_core.search.rules import RuleResult, apply_rule, parse_rule
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate, fit_all, predict_all
from mapmerge_core.studies.config.run import RunSettings, check_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.metric import Metric


@dataclass(frozen=True, eq=False)
class Anchor:
    """A model that every comparison needs: metrics ``values`` (K,) measured at ``c`` (N,)."""

    kind: Literal["pretrained", "single"]
    name: str
    c: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a study's validation points say.

    Attributes:
        study_id: The study.
        tasks: K names; task k belongs to task vector k, so K = N.
        metrics: Their metrics.
        C: Measured coefficients (``n x N``), in the order of measuring.
        Y: Their values (``n x K``), NaN where a task hasn't been measured.
        S: Their standard errors (``n x K``), 0 where the whole split was measured, NaN where nothing was.
        inside: Which rows lie in the box (n,); surrogates are fitted to these alone.
        low: Lower corner of the box that the study's runs sampled.
        high: Upper corner.
        needed: Points that are still missing before the surrogates can be fitted.
        problem: One sentence on why there are no surrogates; None where there are.
        surrogates: One for each task, None until there are points enough.
        r2: Leave-one-out R² (K,), NaN until there are surrogates.
        front: The front inside the box, None until there are surrogates, and where it was not asked for.
        single: Each task's metric of its own single-task model (K,), NaN where it hasn't been measured.
        pretrained: The pre-trained model's metrics (K,), NaN where they haven't been measured.
        fit_seconds: What fitting took.
        front_seconds: What finding the front took.
    """

    study_id: int
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    C: np.ndarray
    Y: np.ndarray
    S: np.ndarray
    inside: np.ndarray
    low: float
    high: float
    needed: int
    problem: str | None
    surrogates: tuple[QuadraticSurrogate, ...] | None
    r2: np.ndarray
    front: Front | None
    single: np.ndarray
    pretrained: np.ndarray
    fit_seconds: float
    front_seconds: float

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each task, whether more is better."""
        return tuple(metric.maximize for metric in self.metrics)

    @property
    def fitted_front(self) -> Front:
        """The front, for whoever can't do without.

        Raises:
            StudyError: while there is none; says why.
        """
        if self.front is None:
            raise StudyError(self.problem or "The study has no front yet.")
        return self.front

    def values(self, C: np.ndarray) -> np.ndarray:
        """The surrogates' metrics (``m x K``) at several c (``m x N``).

        Raises:
            StudyError: while there are no surrogates.
        """
        return predict_all(self._fitted(), C)

    def predict(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The surrogates' metrics at one c (N,).

        Returns:
            Values and the ends of their 90% intervals, each (K,).

        Raises:
            StudyError: while there are no surrogates.
        """
        row = np.asarray(c, dtype=np.float64)[None]
        ends = np.array([surrogate.predict_interval(row) for surrogate in self._fitted()])
        return self.values(row)[0], ends[:, 0, 0], ends[:, 1, 0]

    def anchors(self) -> list[Anchor]:
        """The pre-trained and the single-task models, as far as every task was measured on them."""
        n = len(self.tasks)
        corners = np.vstack([np.zeros(n), np.eye(n)])
        names: list[tuple[Literal["pretrained", "single"], str]] = [("pretrained", "Pre-trained")]
        names += [("single", name) for name in self.tasks]
        found = []
        for (kind, name), c in zip(names, corners, strict=True):
            values = _values_at(self.C, self.Y, c)
            if not np.isnan(values).any():
                found.append(Anchor(kind, name, c, values))
        return found

    def by_preference(
        self,
        weights: Mapping[str, float],
        *,
        scalarisation: Scalarisation = "weighted_sum",
        normalise: bool = False,
    ) -> int:
        """The front's row that suits a preference best; tasks without a weight have none.

        Raises:
            StudyError: while there is no front, and for a task that the study doesn't have.
            SearchError: for weights that can't be used, and where normalising lacks single-task models.
        """
        front = self.fitted_front
        for name in weights:
            if name not in self.tasks:
                raise StudyError(f"There is no task '{name}': the study has {', '.join(self.tasks)}.")
        return choose_by_preference(
            front.predicted,
            [weights.get(task, 0.0) for task in self.tasks],
            maximize=self.maximize,
            scale=self.single if normalise else None,
            scalarisation=scalarisation,
        )

    def by_rule(self, text: str) -> RuleResult:
        """The model in the box that a rule asks for.

        Raises:
            RuleError: where the text is no rule over the study's tasks.
            StudyError: while there is no front.
            SearchError: where the rule needs single-task models that haven't been measured.
        """
        bounds = [metric.bounds for metric in self.metrics]
        rule = parse_rule(text, self.tasks, maximize=self.maximize, bounds=bounds)
        return apply_rule(
            rule,
            self.fitted_front,
            self._fitted(),
            low=self.low,
            high=self.high,
            single=self.single,
            maximize=self.maximize,
        )

    def _fitted(self) -> tuple[QuadraticSurrogate, ...]:
        if self.surrogates is None:
            raise StudyError(self.problem or "The study has no surrogates yet.")
        return self.surrogates


def analyse(
    store: Store, study_id: int, *, seed: int = 0, generations: int = GENERATIONS, with_front: bool = True
) -> Analysis:
    """Fits each task's surrogate to the study's validation points and finds the front (MAP, Algorithm 1).

    The box is the one that the study's runs sampled (``Store.sampled_box``); link and loss are those of its
    latest run of a search. Points outside the box, as the single-task models are where it ends below 1,
    aren't fitted: the front can't reach them, and they would bend the surrogates. The same evaluations and
    seed give the same front; ``Store.fingerprint`` tells whether there are new ones. Without ``with_front``
    the surrogates alone are fitted, which takes milliseconds where the front takes up to seconds.

    Raises:
        StudyError: where there is no such study.
        SearchError: for a seed that can't be used.
    """
    check_seed(seed)
    study = store.study(study_id)
    metrics = study.spec.metrics
    runs = [run for run in store.runs(study_id) if run.method in SEARCHES]
    settings = runs[-1].settings if runs else RunSettings(points=0)
    low, high = store.sampled_box(study_id)
    found = store.measurements(study_id)
    C, Y, S = found.C, found.Y, found.S
    n = len(metrics)
    inside = np.asarray(((low <= C) & (high >= C)).all(axis=1))
    usable = [inside & ~np.isnan(y) for y in Y.T]
    needed = max(0, QuadraticSurrogate.n_parameters(n) - min(int(rows.sum()) for rows in usable))

    single, pretrained = corner_values(C, Y)
    surrogates: tuple[QuadraticSurrogate, ...] | None = None
    front: Front | None = None
    problem: str | None = None
    started = fitted = time.perf_counter()
    if needed:
        points = "1 more point is" if needed == 1 else f"{needed} more points are"
        problem = f"{points} needed before the surrogates can be fitted: evaluate more first."
    else:
        try:
            surrogates = _fit(C, Y, S, usable, settings, metrics)
        except SearchError as error:
            problem = str(error)
        else:
            fitted = time.perf_counter()
            if with_front:
                front = find_front(
                    surrogates,
                    low,
                    high,
                    maximize=[metric.maximize for metric in metrics],
                    seed=seed,
                    generations=generations,
                    include=C[inside],
                )
    return Analysis(
        study_id=study_id,
        tasks=study.spec.task_names,
        metrics=metrics,
        C=C,
        Y=Y,
        S=S,
        inside=inside,
        low=low,
        high=high,
        needed=needed,
        problem=problem,
        surrogates=surrogates,
        r2=np.array([s.loo_r2_ for s in surrogates]) if surrogates else np.full(n, np.nan),
        front=front,
        single=single,
        pretrained=pretrained,
        fit_seconds=fitted - started,
        front_seconds=time.perf_counter() - fitted,
    )


def _fit(
    C: np.ndarray,
    Y: np.ndarray,
    S: np.ndarray,
    usable: Sequence[np.ndarray],
    settings: RunSettings,
    metrics: Sequence[Metric],
) -> tuple[QuadraticSurrogate, ...]:
    """A surrogate for each task, fitted to its ``usable`` rows; tasks with the same rows share the work."""
    links = settings.links(metrics)
    alike: dict[bytes, list[int]] = {}
    for k, rows in enumerate(usable):
        alike.setdefault(rows.tobytes(), []).append(k)
    found: dict[int, QuadraticSurrogate] = {}
    for tasks in alike.values():
        rows = usable[tasks[0]]
        chosen = [links[k] for k in tasks]
        surrogates = fit_all(C[rows], Y[rows][:, tasks], chosen, settings.loss, S[rows][:, tasks])
        found |= zip(tasks, surrogates, strict=True)
    return tuple(found[k] for k in range(len(links)))


def corner_values(C: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each task's metric of its own single-task model, and the pre-trained model's metrics.

    Args:
        C: Measured coefficients (``n x N``).
        Y: Their metrics (``n x K``), K = N.

    Returns:
        Both (K,), NaN where they haven't been measured.
    """
    n = C.shape[1]
    return np.diag([_values_at(C, Y, c) for c in np.eye(n)]).copy(), _values_at(C, Y, np.zeros(n))


def _values_at(C: np.ndarray, Y: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The values (K,) measured at one c, NaN where there are none."""
    rows = np.flatnonzero((c == C).all(axis=1))
    return Y[rows[0]] if rows.size else np.full(Y.shape[1], np.nan)
