"""How a study is run: a merge, a method, and where it is computed. These types are the study file's schema, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mapmerge_core.errors import MapMergeError, SearchError, StudyError
from mapmerge_core.merges.base import Merge
from mapmerge_core.methods.base import Method, ObjectiveInfo
from mapmerge_core.registries import LINKS, MERGES, METHODS
from mapmerge_core.search.links.base import make_link
from mapmerge_core.search.surrogates.fitting import LossName
from mapmerge_core.settings import label, make, to_dict
from mapmerge_core.studies.config.study import CLOSED, PlacedError, StudyConfig, Text
from mapmerge_core.tasks.families import find_family

if TYPE_CHECKING:
    from mapmerge_core.search.spaces import Space

QUICK_IMAGES = 500
"""Images of each task that a quick run measures a point on.

As many give the front of whole splits on the demo zoo, by IGD to 10 % (`python -m benchmarks.paper budget`).
"""
MIN_IMAGES = 10

Number = Annotated[float, Strict()]
Precision = Literal["auto", "float32", "bfloat16"]
VectorsDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Compute:
    """Where and in which numbers a run is computed; it changes no meaning of what is measured.

    Attributes:
        device: "auto", "cuda", "mps", "cpu" or a torch device such as "cuda:1"; or several with commas between
            them, which share a search's points. "auto" is every GPU there is.
        precision: Of the validation split: "float32", "bfloat16", or "auto" for what is fast.
        vectors: What task vectors are held in for the validation split: "float32", or "bfloat16" in half the
            memory.
    """

    device: Text = "auto"
    precision: Precision = "auto"
    vectors: VectorsDtype = "float32"


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RunConfig:
    """What a run is asked to do.

    Attributes:
        merge: The merge's name.
        merge_settings: Those of its settings that were chosen; kept complete.
        method: The method's name.
        method_settings: Likewise; ``points`` and ``seed`` are among them.
        low: The lowest coefficient to sample, None for the merge's own.
        high: The highest.
        images: On how many images of each task's validation split points are measured (of texts: blocks), where
            it has more; None for all. The pre-trained and the models' own are measured on all always.
        link: The surrogates' link, or "auto" for the one that suits each metric.
        loss: What the surrogates' fit minimises: "squared", "absolute" or "huber".
        compute: Where it is computed.

    Raises:
        MapMergeError: A name or a setting is unknown, or out of bounds.
    """

    merge: Text = "task_arithmetic"
    merge_settings: Mapping[Text, Any] = field(default_factory=dict)
    method: Text = "map"
    method_settings: Mapping[Text, Any] = field(default_factory=dict)
    low: Number | None = None
    high: Number | None = None
    images: Annotated[int, Strict()] | None = None
    link: Text = "auto"
    loss: LossName = "squared"
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        self._complete("merge", MERGES)
        self._complete("method", METHODS)
        if self.link != "auto":
            try:
                LINKS[self.link]
            except MapMergeError as error:
                raise PlacedError(str(error), "link") from error
        if self.images is not None and self.images < MIN_IMAGES:
            raise PlacedError(
                f"The images of each task must be a whole number from {MIN_IMAGES} on, not {self.images}.", "images"
            )

    def _complete(self, what: Literal["merge", "method"], registry: Any) -> None:  # noqa: ANN401
        """Check the settings of a merge or a method, and keep all of them."""
        try:
            kind = registry[getattr(self, what)]
            given = make(kind.Settings, getattr(self, f"{what}_settings"), what=kind.title)
        except MapMergeError as error:
            raise PlacedError(str(error), what) from error
        object.__setattr__(self, f"{what}_settings", to_dict(given))

    @property
    def points(self) -> int | None:
        """The budget, None for the method's usual one."""
        return self.method_settings.get("points")

    @property
    def seed(self) -> int:
        """The method's seed."""
        return int(self.method_settings.get("seed", 0))

    @property
    def label(self) -> str:
        """Such as "MAP on RegMean", with what differs from the usual settings."""
        method, merge = METHODS[self.method], self.make_merge()
        changed = label(make(method.Settings, self.method_settings, what=method.title))
        return f"{method.title} on {merge.label}" + (f" ({changed})" if changed else "")

    def make_merge(self) -> Merge:
        """Return the merge with its settings."""
        return MERGES[self.merge](dict(self.merge_settings))

    def space(self, study: StudyConfig) -> Space:
        """Return the part of the merge's space that is sampled.

        Raises:
            SearchError: The merge has no coefficients to bound, or the box is empty.
        """
        return self.make_merge().space(study.model_names).within(self.low, self.high)

    def objectives(self, study: StudyConfig) -> list[ObjectiveInfo]:
        """Return what a search knows of the study's objectives.

        Raises:
            SearchError: The link can't have an objective's bounds.
        """
        models = study.model_names
        infos = []
        for objective in study.objectives:
            metric = objective.metric
            link = metric.link if self.link == "auto" else self.link
            make_link(link, metric.bounds)
            model = None if objective.model is None else models.index(objective.model)
            infos.append(ObjectiveInfo(objective.name, metric.maximize, metric.bounds, link, model))
        return infos

    def make_method(self, study: StudyConfig) -> Method:
        """Return the method, ready to ask for its first points.

        Raises:
            SearchError: The budget, the box or the space can't be sampled, or surrogates not fitted.
            RuleError: A rule isn't one over the study's objectives.
        """
        method = METHODS[self.method]
        settings: Any = make(method.Settings, self.method_settings, what=method.title)
        return method(self.space(study), self.objectives(study), settings, loss=self.loss)

    def check(self, study: StudyConfig) -> None:
        """Make sure that the run can be done in a study, before anything is measured.

        Raises:
            SearchError, RuleError: As for `make_method`, or the merge is a single model.
            StudyError: The merge can't merge the study's models, or they can't be measured on some images.
        """
        for place, check in (
            ("images", lambda: None if self.images is None else check_images(study)),
            ("merge", lambda: check_merge(self.make_merge(), study, self.compute.vectors)),
        ):
            try:
                check()
            except MapMergeError as error:
                raise PlacedError(str(error), place) from error
        self.make_method(study)

    def is_same_as(self, other: RunConfig) -> bool:
        """Return whether two runs ask for the same, wherever they are computed."""
        return replace(self, compute=Compute()) == replace(other, compute=Compute())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` reads the same run from them."""
        return TypeAdapter(RunConfig).dump_python(self, mode="json")  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read a run from what `to_dict` returned.

        Raises:
            StudyError: They are no run.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            raise StudyError(f"The run can't be read: {error.errors()[0]['msg']}.") from error


def check_merge(merge: Merge, study: StudyConfig, vectors: str) -> None:
    """Make sure that a merge can merge a study's models, and has points to search.

    Raises:
        StudyError: It can't; the sentence says why.
        SearchError: It is a single model.
    """
    merge.check(study.facts(vectors))
    if not merge.space(study.model_names).n_free:
        raise SearchError(
            f"{merge.title} is a single model, so there is nothing to search: make and measure it on Compare, or by "
            f"`mapmerge compare STUDY --merges {merge.name}`."
        )


def check_images(study: StudyConfig) -> None:
    """Make sure that a study's models can be measured on a part of each validation split.

    Raises:
        SearchError: They can't; the sentence says why.
    """
    if find_family(study.family).examples is None:
        raise SearchError(
            f"'{study.family}' brings its own data and measures all of it: leave the number of images out."
        )
    for objective in study.objectives:
        if not objective.metric.is_mean:
            raise SearchError(
                f"'{objective.name}' is measured by {objective.metric.name}, which is no mean over images, so that "
                "some of them don't tell it: leave the number of images out."
            )
