"""From a study's evaluations to surrogates, the front of all merges, and choices on it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.search.fronts import GENERATIONS, Front, JointFront, find_front, join_fronts
from mapmerge_core.search.preferences import Scalarisation, choose_by_preference
from mapmerge_core.search.rules import Miss, apply_rule, judge, parse_rule
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates
from mapmerge_core.settings import check_seed
from mapmerge_core.studies.analysis.references import References, references_in, shares_of
from mapmerge_core.studies.config.run import RunConfig
from mapmerge_core.studies.store import Measurements, Store, StoredMerge
from mapmerge_core.tasks.objective import Objective, maximize_of

if TYPE_CHECKING:
    from mapmerge_core.search.spaces import Space

Prediction = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values and the ends of their 90 % intervals."""


@dataclass(frozen=True, eq=False)
class MergeAnalysis:
    """What the validation points of one merge say.

    Attributes:
        merge: The merge.
        title: What people call it.
        space: The part of its space that its runs sampled; surrogates and front stay in it.
        X: Measured points (``n x D``), in the order of measuring.
        Y: Their values (``n x K``), NaN where an objective hasn't been measured.
        S: Their standard errors (``n x K``), see `Measurements`.
        inside: Which rows lie in ``space`` (n,); surrogates are fitted to these alone.
        needed: Points that are still missing before surrogates can be fitted.
        problem: One sentence on why there are no surrogates, None where there are, or none are needed.
        surrogates: One for each objective; None until there are points enough, and for a single point.
        r2: Leave-one-out R² (K,), NaN without surrogates.
        front: The merge's own front; None until there are surrogates, and where it wasn't asked for.
        fit_seconds: What fitting took.
        front_seconds: What finding the front took.
    """

    merge: StoredMerge
    title: str
    space: Space
    X: np.ndarray
    Y: np.ndarray
    S: np.ndarray
    inside: np.ndarray
    needed: int
    problem: str | None
    surrogates: SpaceSurrogates | None
    r2: np.ndarray
    front: Front | None
    fit_seconds: float
    front_seconds: float

    def predict(self, X: np.ndarray) -> Prediction:
        """Predict the objectives at several points (``m x D``).

        Returns:
            Values and the ends of their 90 % intervals, each ``m x K``; of a merge without coordinates what
            was measured.

        Raises:
            StudyError: There are no surrogates yet.
            PointError: A row is no point of the space.
        """
        if self.surrogates is not None:
            X = self.merge.space.points(X)
            return self.surrogates.predict(X), *self.surrogates.predict_interval(X)
        if self.problem is None:
            values = np.repeat(self.Y[:1], len(X), axis=0)
            return values, values, values
        raise StudyError(self.problem)


@dataclass(frozen=True, eq=False)
class RuleChoice:
    """The model that a rule leads to.

    Attributes:
        merge_id, x: The model.
        predicted: Its predicted values (K,).
        lower, upper: The ends of their 90 % intervals (K,).
        feasible: Whether the predicted values meet every threshold.
        misses: The thresholds missed, the largest miss first.
        message: One sentence for people.
    """

    merge_id: int
    x: np.ndarray
    predicted: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    feasible: bool
    misses: tuple[Miss, ...]
    message: str


@dataclass(frozen=True, eq=False)
class StudyAnalysis:
    """What a study's validation points say.

    Attributes:
        study_id: The study.
        objectives: Its K objectives.
        merges: Its merges, or those that were asked for, oldest first.
        front: The front of all these merges together; None while none has one.
        references: The fine-tuned models and the pre-trained one.
    """

    study_id: int
    objectives: tuple[Objective, ...]
    merges: tuple[MergeAnalysis, ...]
    front: JointFront | None
    references: References

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' names."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each objective, whether more is better."""
        return maximize_of(self.objectives)

    @property
    def single(self) -> np.ndarray:
        """See `References`."""
        return self.references.single

    @property
    def pretrained(self) -> np.ndarray:
        """The pre-trained model's values (K,), NaN where they haven't been measured."""
        return self.references.pretrained

    @property
    def needed(self) -> int:
        """How many points are missing before one of the merges has surrogates."""
        return min((merge.needed for merge in self.merges), default=0)

    @property
    def problem(self) -> str | None:
        """One sentence on why there is no front; None where a merge has surrogates."""
        if any(merge.problem is None for merge in self.merges):
            return None
        nearest = min(self.merges, key=lambda merge: merge.needed, default=None)
        return "The study has no merge yet." if nearest is None else nearest.problem

    @property
    def fitted_front(self) -> JointFront:
        """The front, for whoever can't do without.

        Raises:
            StudyError: There is none; says why.
        """
        if self.front is None:
            raise StudyError(self.problem or "The study has no front yet.")
        return self.front

    def merge(self, merge_id: int) -> MergeAnalysis:
        """Return one merge's part.

        Raises:
            StudyError: It isn't one of the merges.
        """
        for merge in self.merges:
            if merge.merge.id == merge_id:
                return merge
        raise StudyError(f"There is no merge {merge_id} here: it may have been deleted.")

    def predict(self, merge_id: int, x: np.ndarray) -> Prediction:
        """Predict the objectives at one point (D,) of a merge.

        Returns:
            Values and the ends of their 90 % intervals, each (K,).

        Raises:
            StudyError: It isn't one of the merges, or has no surrogates yet.
            PointError: ``x`` is no point of its space.
        """
        values, lower, upper = self.merge(merge_id).predict(np.asarray(x, dtype=np.float64)[None])
        return values[0], lower[0], upper[0]

    def by_preference(
        self, weights: Mapping[str, float], *, scalarisation: Scalarisation = "weighted_sum", normalise: bool = False
    ) -> int:
        """Return the front's row that suits a preference best.

        Args:
            weights: By an objective's name; those left out have none.
            scalarisation: See `choose_by_preference`.
            normalise: Whether to weigh shares of the fine-tuned models' values.

        Raises:
            StudyError: There is no front; a name is no objective's.
            SearchError: The weights can't be used; normalising lacks values of fine-tuned models.
        """
        front = self.fitted_front
        return choose_by_preference(
            front.predicted,
            shares_of(weights, self.objectives),
            maximize=self.maximize,
            scale=self.single if normalise else None,
            scalarisation=scalarisation,
        )

    def by_rule(self, text: str) -> RuleChoice:
        """Return the model that a rule asks for: the best that meets it in any merge, or else the nearest.

        Raises:
            RuleError: The text is no rule over the study's objectives.
            StudyError: There is no front.
            SearchError: The rule needs references that haven't been measured.
        """
        bounds = [objective.metric.bounds for objective in self.objectives]
        rule = parse_rule(text, self.names, maximize=self.maximize, bounds=bounds)
        if self.front is None:
            raise StudyError(self.problem or "The study has no front yet.")
        aims: dict[str, Any] = {"single": self.single, "pretrained": self.pretrained, "maximize": self.maximize}
        choices = []
        for merge in self.merges:
            if merge.surrogates is not None and merge.front is not None:
                result = apply_rule(rule, merge.front, merge.surrogates, **aims)
                values = result.predicted, result.lower, result.upper
                choices.append(
                    RuleChoice(merge.merge.id, result.x, *values, result.feasible, result.misses, result.message)
                )
            elif merge.front is not None:  # a single point, as it was measured
                judged, values = judge(rule, merge.Y[:1], **aims), (merge.Y[0],) * 3
                message = "This model meets the rule, as measured on the validation split."
                if not judged.feasible:
                    message = f"{merge.title} is a single model, which misses {judged.missed}."
                choices.append(RuleChoice(merge.merge.id, merge.X[0], *values, judged.feasible, judged.misses, message))
        return choices[judge(rule, np.array([choice.predicted for choice in choices]), **aims).best]


def analyse(
    store: Store,
    study_id: int,
    *,
    merges: Collection[int] | None = None,
    seed: int = 0,
    generations: int = GENERATIONS,
    with_front: bool = True,
) -> StudyAnalysis:
    """Fit each merge's surrogates to its validation points and find the front of all (MAP, Algorithm 1).

    A merge's surrogates are fitted, and its front found, in the part of its space that its runs sampled
    (`Evaluations.regions`); points outside, as the fine-tuned models are where a box ends below 1, would bend
    the surrogates. Link and loss are those of its latest run. The same evaluations and seed give the same
    front; `Evaluations.fingerprint` tells whether there are new ones.

    Args:
        store: Where the study is.
        study_id: The study.
        merges: The ids of the merges to look at; all by default.
        seed: Seed of the search for fronts.
        generations: See `find_front`.
        with_front: Whether to find fronts, which takes up to seconds where fitting takes milliseconds.

    Raises:
        StudyError: There is no such study.
        SettingError: The seed can't be used.
    """
    check_seed(seed)
    config = store.merges.config(study_id)
    stored = store.merges.all(study_id)
    runs = {run.merge_id: run.config for run in store.runs.all(study_id)}  # the latest of each merge stays
    regions = store.evaluations.regions(study_id)
    tables = store.evaluations.tables(study_id)
    objectives = config.objectives
    analysed = []
    for merge in stored:
        if merges is not None and merge.id not in merges:
            continue
        table = tables.get(merge.id, Measurements.empty(merge.space.n, len(objectives)))
        search = (seed, generations) if with_front else None
        analysed.append(_analyse(merge, regions[merge.id], table, runs.get(merge.id, RunConfig()), objectives, search))
    fronts = [(merge.merge.id, merge.front) for merge in analysed if merge.front is not None]
    maximize = maximize_of(objectives)
    return StudyAnalysis(
        study_id=study_id,
        objectives=objectives,
        merges=tuple(analysed),
        front=join_fronts(fronts, maximize) if fronts else None,
        references=references_in(tables.get(stored[0].id), stored[0].id, config),
    )


def _analyse(
    merge: StoredMerge,
    space: Space,
    table: Measurements,
    run: RunConfig,
    objectives: Sequence[Objective],
    search: tuple[int, int] | None,
) -> MergeAnalysis:
    """Return one merge's part; ``search`` is the seed and the generations of its front, if that is wanted."""
    X, Y, S = table.X, table.Y, table.S
    inside = space.contains(X)
    n_known = int(np.isfinite(Y[inside]).sum(axis=0).min(initial=len(X)))
    needed = max(0, QuadraticSurrogate.n_parameters(space.n_free) - n_known)
    surrogates: SpaceSurrogates | None = None
    front: Front | None = None
    problem: str | None = None
    start = fitted = time.perf_counter()
    if needed:
        points = "1 more point is" if needed == 1 else f"{needed} more points are"
        problem = f"{points} needed before the surrogates can be fitted: evaluate more first."
    elif space.n_free == 0:  # one model, of which all is known
        front = Front(X[:1], Y[:1], Y[:1], Y[:1]) if search else None
    else:
        try:
            surrogates = fit(space, table, run, objectives)
        except SearchError as error:
            problem = str(error)
        fitted = time.perf_counter()
        if surrogates is not None and search is not None:
            front = search_front(surrogates, table, objectives, *search)
    return MergeAnalysis(
        merge=merge,
        title=merge.title,
        space=space,
        X=X,
        Y=Y,
        S=S,
        inside=inside,
        needed=needed,
        problem=problem,
        surrogates=surrogates,
        r2=np.full(len(objectives), np.nan) if surrogates is None else surrogates.r2,
        front=front,
        fit_seconds=fitted - start,
        front_seconds=time.perf_counter() - fitted,
    )


def fit(space: Space, table: Measurements, run: RunConfig, objectives: Sequence[Objective]) -> SpaceSurrogates:
    """Fit a surrogate of each objective to what was measured inside a space, with a run's link and loss.

    Raises:
        SearchError: There are too few points, or they don't tell the surrogates' parameters apart.
    """
    inside = space.contains(table.X)
    links = links_of(run, objectives)
    return fit_surrogates(space, table.X[inside], table.Y[inside], links, run.loss, table.S[inside])


def search_front(
    surrogates: SpaceSurrogates,
    table: Measurements,
    objectives: Sequence[Objective],
    seed: int,
    generations: int = GENERATIONS,
) -> Front:
    """Find the front of surrogates, for which the measured points inside their space compete, too."""
    return find_front(
        surrogates,
        maximize=maximize_of(objectives),
        seed=seed,
        generations=generations,
        include=table.X[surrogates.space.contains(table.X)],
    )


def links_of(run: RunConfig, objectives: Sequence[Objective]) -> list[tuple[str, tuple[float, float]]]:
    """Return each objective's link and bounds, as `fit_surrogates` takes them."""
    metrics = [objective.metric for objective in objectives]
    return [(metric.link if run.link == "auto" else run.link, metric.bounds) for metric in metrics]
