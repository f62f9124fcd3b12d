"""What a run was asked to do, and the method that does it. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.merges._training_settings import Training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.methods.base import Method
    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.search.designs import Kind
    from mapmerge_core.search.surrogates.fitting import LossName
    from mapmerge_core.search.links import LinkName
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.tasks.metric import Metric

QUICK_IMAGES = 500
"""Images of each task that a quick run measures a point on.

As many give the front of whole splits on the demo zoo, by IGD to 10 % (`python -m benchmarks.paper budget`).
"""

VectorsDtype = Literal["float32", "bfloat16"]
"""What task vectors are held in."""

MIN_IMAGES = 10
MAX_POINTS = 100_000
MAX_SEED = 2**31 - 1


def check_seed(seed: int) -> None:
    """Makes sure that every random number generator takes the seed.

    Raises:
        SearchError: where one doesn't.
    """
    if not 0 <= seed <= MAX_SEED:
        raise SearchError(f"The seed {seed} can't be used: choose a whole number from 0 to {MAX_SEED}.")


def check_learnable(spec: StudySpec, *, data_free: bool) -> None:
    """Makes sure that Pareto Merging can learn from a study's models and data.

    Raises:
        StudyError: where it can't.
    """
    from mapmerge_core.tasks.families import family_info
    from mapmerge_core.weights.io.hub import is_adapter

    if any(is_adapter(task.checkpoint) for task in spec.tasks):
        raise StudyError(
            "Pareto Merging needs whole models, and adapters stay in low rank: choose MAP, or merge the "
            "adapters into models first."
        )
    if data_free:
        return
    if not family_info(spec.family).gives_logits:
        raise StudyError(
            "Pareto Merging learns from the logits of image classifiers: train data-free, or choose MAP."
        )
    for task in spec.tasks:
        if task.data is None:
            raise StudyError(
                f"Pareto Merging needs unlabelled images of '{task.name}': add its dataset, or train "
                "data-free."
            )


def check_vectors(vectors: VectorsDtype, spec: StudySpec) -> None:
    """Makes sure that a study's task vectors can be held in such numbers.

    Raises:
        SearchError: where they can't be.
    """
    if vectors not in get_args(VectorsDtype):
        raise SearchError(f"Task vectors are held in {' or '.join(get_args(VectorsDtype))}, not {vectors}.")
    if vectors != "float32" and spec.transform:
        raise SearchError(
            f"{spec.transform.label} changes the task vectors, which takes float32: hold them in float32."
        )


def check_images(images: int | None, spec: StudySpec) -> None:
    """Makes sure that models of a study can be measured on so many images of each task; None is all of them.

    Raises:
        SearchError: where they can't be.
    """
    from mapmerge_core.tasks.families import family_info

    if images is None:
        return
    if type(images) is not int or images < MIN_IMAGES:
        raise SearchError(
            f"The images of each task must be a whole number from {MIN_IMAGES} on, not {images}."
        )
    if family_info(spec.family).examples is None:
        raise SearchError(
            f"'{spec.family}' brings its own data and measures all of it: leave the number of images out."
        )
    for task, metric in zip(spec.tasks, spec.metrics, strict=True):
        if not metric.is_mean:
            raise SearchError(
                f"'{task.name}' is measured by {metric.name}, which is no mean over images, so that some of "
                "them don't tell it: leave the number of images out."
            )


def has_parts(spec: StudySpec) -> bool:
    """Whether a study's models can be measured on some of a validation split's images."""
    try:
        check_images(MIN_IMAGES, spec)
    except SearchError:
        return False
    return True


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked to do.

    Attributes:
        points: Budget: coefficient vectors to evaluate, anchors included; of nested MAP for each pair, of
            Pareto Merging preferences to measure once it has learned.
        seed: Seed of the design; the same seed asks for the same coefficients.
        low: Lower corner of the sampled box, the same for every coefficient.
        high: Upper corner of the sampled box.
        design: "uniform" (the paper's), "sobol" or "grid"; Bayesian and nested MAP sample uniformly.
        anchors: Whether the origin and the unit vectors (pre-trained and single-task models) come first.
        device: "auto", "cuda", "mps", "cpu" or a torch device such as "cuda:1"; or several with commas
            between them, which share a search's points. "auto" is every GPU there is.
        precision: "auto", "float32" or "bfloat16", for the validation split.
        vectors: What task vectors are held in for the validation split: "float32", or "bfloat16" in half the
            memory.
        link: The surrogates' link, or "auto" for the one that suits each task's metric.
        loss: What the surrogates' fit minimises: "squared", "absolute" or "huber".
        initial: Bayesian MAP's first points; None for as many as a surrogate has parameters.
        batch: Bayesian MAP's points a round; None for half as many.
        weights: Nested MAP's preference by task; None for equal weights.
        rule: Nested MAP's rule, instead of a preference.
        order: Nested MAP's tasks in the order of the tree's leaves; None pairs by loss.
        training: How Pareto Merging learns; None for the paper's way.
        images: On how many images of each task's validation split points are measured (of texts: blocks),
            where it has more; None for all. The pre-trained and single-task models are measured on all
            always. Pareto Merging's models are, too.
    """

    points: int
    seed: int = 0
    low: float = 0.0
    high: float = 1.0
    design: Kind = "uniform"
    anchors: bool = True
    device: str = "auto"
    precision: str = "auto"
    vectors: VectorsDtype = "float32"
    link: LinkName | Literal["auto"] = "auto"
    loss: LossName = "squared"
    initial: int | None = None
    batch: int | None = None
    weights: Mapping[str, float] | None = None
    rule: str | None = None
    order: Sequence[str] | None = None
    training: Training | None = None
    images: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that ``to_dict`` wrote."""
        training = values.get("training")
        return cls(**{**values, "training": None if training is None else Training(**training)})

    def check(self, name: MethodName, spec: StudySpec) -> None:
        """Refuses what the method called ``name`` can't run with these settings in a study of ``spec``.

        Raises:
            SearchError: for an unknown method, and for settings that can't be sampled or fitted.
            RuleError: for a rule that isn't one over the study's tasks.
            StudyError: where Pareto Merging can't learn from the study's models or data.
        """
        if name != "pareto_merging":
            self.make_method(name, spec)
            return
        self._check_budget()
        if self.vectors != "float32":
            raise SearchError("Pareto Merging trains on float32 task vectors: hold them in float32.")
        if self.points < 1:
            raise SearchError("Measure one preference or more once the set is learned.")
        check_learnable(spec, data_free=self.training is not None and self.training.data_free)

    def make_method(self, name: MethodName, spec: StudySpec) -> Method:
        """The search called ``name`` with these settings, for a study of ``spec``.

        Raises:
            SearchError: for an unknown method, and for settings that can't be sampled or fitted.
            RuleError: for a rule that isn't one over the study's tasks.
        """
        from mapmerge_core.methods.direct import DirectSearch
        from mapmerge_core.methods.map import MAP

        self._check_budget()
        check_images(self.images, spec)
        check_vectors(self.vectors, spec)
        n = len(spec.tasks)
        links = self.links(spec.metrics)
        self._check_surrogates(name, n, links)
        if name in ("map", "direct"):
            return (MAP if name == "map" else DirectSearch)(
                n,
                self.points,
                seed=self.seed,
                low=self.low,
                high=self.high,
                design=self.design,
                anchors=self.anchors,
            )
        if name == "bayesian":
            from mapmerge_core.methods.bayesian import BayesianMAP

            return BayesianMAP(
                n,
                self.points,
                initial=self.initial,
                batch=self.batch,
                seed=self.seed,
                low=self.low,
                high=self.high,
                anchors=self.anchors,
                links=links,
                loss=self.loss,
            )
        if name == "nested":
            from mapmerge_core.methods.nested import NestedMAP

            return NestedMAP(
                n,
                self.points,
                seed=self.seed,
                low=self.low,
                high=self.high,
                tasks=spec.task_names,
                metrics=spec.metrics,
                links=links,
                weights=self.weights,
                rule=self.rule,
                order=self.order,
                loss=self.loss,
            )
        raise SearchError(f"The method '{name}' is unknown: use map, bayesian, nested or direct.")

    def _check_budget(self) -> None:
        check_seed(self.seed)
        if self.points > MAX_POINTS:
            raise SearchError(f"{self.points} points are too many for one run: choose {MAX_POINTS} or fewer.")

    def _check_surrogates(
        self, name: MethodName, n_vectors: int, links: Sequence[tuple[LinkName, tuple[float, float]]]
    ) -> None:
        """Refuses, before anything is measured, what can't be fitted: wrong links, losses and budgets."""
        from mapmerge_core.search.designs import anchors_outside
        from mapmerge_core.search.surrogates.fitting import check_loss
        from mapmerge_core.search.links import make_link
        from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

        check_loss(self.loss)
        for link, bounds in links:
            make_link(link, bounds)
        outside = anchors_outside(n_vectors, self.low, self.high) if self.anchors else 0
        needed = QuadraticSurrogate.n_parameters(n_vectors) + outside
        if name == "map" and self.link == "identity" and self.points < needed:
            why = f" ({outside} anchors outside the box aren't fitted)" if outside else ""
            raise SearchError(
                f"A surrogate of {n_vectors} tasks with the identity link needs {needed} points or more"
                f"{why}, not {self.points}: raise the budget."
            )

    def links(self, metrics: Sequence[Metric]) -> list[tuple[LinkName, tuple[float, float]]]:
        """Each metric's link and bounds."""
        return [(metric.link if self.link == "auto" else self.link, metric.bounds) for metric in metrics]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
