"""What a study is made of, where its files lie, and which studies the demo zoo offers.

Nothing here imports torch, so that pages can list and describe studies at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.studies.paths import absolute
from mapmerge_core.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.methods.base import Method
    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.search.design import Kind
    from mapmerge_core.search.fitting import LossName
    from mapmerge_core.search.links import LinkName

TransformKind = Literal["ties_trim", "ties", "dare"]

MAX_POINTS = 100_000
MAX_SEED = 2**31 - 1
DEMO_ZOO = Path(__file__).resolve().parents[2] / "assets" / "zoo"
# In this order each demo holds the smaller ones, and its first tasks are the ones that clash most visibly.
_DEMO_ORDER = ("MNIST", "Emoji", "Letters", "Textures", "Fashion", "QuickDraw", "Flags", "Street")


@dataclass(frozen=True)
class TaskSpec:
    """One task: its name, its fine-tuned checkpoint and the .npz file it is measured on; absolute paths."""

    name: str
    checkpoint: Path
    data: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", absolute(self.checkpoint))
        object.__setattr__(self, "data", absolute(self.data))


@dataclass(frozen=True)
class Transform:
    """What is done to a study's task vectors before any merge (see ``weights.transforms``).

    Attributes:
        kind: "ties_trim" (trim), "ties" (trim and elect signs) or "dare" (drop at random, rescale).
        keep: Share of each task vector that trimming keeps.
        drop: Share of each task vector that DARE drops.
        seed: Seed of what DARE drops.

    Raises:
        StudyError: for an unknown kind, and for shares that leave nothing or aren't shares.
    """

    kind: TransformKind
    keep: float = 0.2
    drop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TransformKind):
            raise StudyError(
                f"The transform '{self.kind}' is unknown: use {', '.join(get_args(TransformKind))}."
            )
        if not 0 < self.keep <= 1:
            raise StudyError(
                f"TIES keeps a share of each task vector above 0 and at most 1, not {self.keep:g}."
            )
        if not 0 <= self.drop < 1:
            raise StudyError(f"DARE drops a share of each task vector from 0 to below 1, not {self.drop:g}.")
        check_seed(self.seed)

    @property
    def label(self) -> str:
        """Such as "TIES-trim 20 %" or "DARE 50 %"."""
        names = {"ties_trim": "TIES-trim", "ties": "TIES", "dare": "DARE"}
        return f"{names[self.kind]} {100 * (self.drop if self.kind == 'dare' else self.keep):g} %"


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The fixed parts of a study; the order of its tasks is the order of every c's coefficients.

    Paths become absolute, so that a study opens from any folder.

    Attributes:
        family: How parameters become predictions; "clip" is CLIP zero-shot.
        architecture: Path of an open_clip configuration JSON, or the name of an open_clip architecture.
        pretrained: Checkpoint that all the fine-tuned models started from.
        tasks: Two tasks or more, with different names.
        transform: What is done to the task vectors first; the "single-task models" of a study with one are
            the pre-trained model plus a transformed task vector.

    Raises:
        StudyError: for fewer than two tasks, and for names that are empty, taken or reserved.
    """

    family: str = "clip"
    architecture: str
    pretrained: Path
    tasks: tuple[TaskSpec, ...]
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.family != "clip":
            raise StudyError(f"The model family '{self.family}' is unknown: use 'clip'.")
        if len(self.tasks) < 2:
            raise StudyError(
                f"A study merges two tasks or more, but {len(self.tasks)} was given: add another."
            )
        names = [task.name for task in self.tasks]
        for name in names:
            if not name.strip():
                raise StudyError("A task has no name: give every task a name of its own.")
            if name == "pretrained":
                raise StudyError("'pretrained' means the pre-trained model: give that task another name.")
            if names.count(name) > 1:
                raise StudyError(f"Two tasks are called '{name}': give every task a name of its own.")
        object.__setattr__(self, "pretrained", absolute(self.pretrained))
        if self.architecture.endswith(".json"):
            object.__setattr__(self, "architecture", str(absolute(self.architecture)))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""
        return tuple(task.name for task in self.tasks)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metric of each task; zero-shot classifiers are measured by accuracy."""
        return (ACCURACY,) * len(self.tasks)

    def files(self) -> dict[str, Path]:
        """Every file that an evaluation depends on, by its role ("pretrained", "MNIST data", ...)."""
        files = {"pretrained": self.pretrained}
        if self.architecture.endswith(".json"):
            files["architecture"] = Path(self.architecture)
        for task in self.tasks:
            files[f"{task.name} checkpoint"] = task.checkpoint
            files[f"{task.name} data"] = task.data
        return files

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "family": self.family,
            "architecture": self.architecture,
            "pretrained": str(self.pretrained),
            "tasks": [
                {"name": task.name, "checkpoint": str(task.checkpoint), "data": str(task.data)}
                for task in self.tasks
            ],
        } | ({"transform": asdict(self.transform)} if self.transform else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudySpec:
        """The spec that ``to_dict`` described."""
        return cls(
            family=values["family"],
            architecture=values["architecture"],
            pretrained=Path(values["pretrained"]),
            tasks=tuple(
                TaskSpec(task["name"], Path(task["checkpoint"]), Path(task["data"]))
                for task in values["tasks"]
            ),
            transform=Transform(**values["transform"]) if "transform" in values else None,
        )


def check_seed(seed: int) -> None:
    """Makes sure that every random number generator takes the seed.

    Raises:
        SearchError: where one doesn't.
    """
    if not 0 <= seed <= MAX_SEED:
        raise SearchError(f"The seed {seed} can't be used: choose a whole number from 0 to {MAX_SEED}.")


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked to do.

    Attributes:
        points: Budget: coefficient vectors to evaluate, anchors included; of nested MAP for each pair.
        seed: Seed of the design; the same seed asks for the same coefficients.
        low: Lower corner of the sampled box, the same for every coefficient.
        high: Upper corner of the sampled box.
        design: "uniform" (the paper's), "sobol" or "grid"; Bayesian and nested MAP sample uniformly.
        anchors: Whether the origin and the unit vectors (pre-trained and single-task models) come first.
        device: "auto", "cuda", "mps", "cpu" or a torch device such as "cuda:1".
        precision: "auto", "float32" or "bfloat16", for the validation split.
        link: The surrogates' link, or "auto" for the one that suits each task's metric.
        loss: What the surrogates' fit minimises: "squared", "absolute" or "huber".
        initial: Bayesian MAP's first points; None for as many as a surrogate has parameters.
        batch: Bayesian MAP's points a round; None for half as many.
        weights: Nested MAP's preference by task; None for equal weights.
        rule: Nested MAP's rule, instead of a preference.
        order: Nested MAP's tasks in the order of the tree's leaves; None pairs by loss.
    """

    points: int
    seed: int = 0
    low: float = 0.0
    high: float = 1.0
    design: Kind = "uniform"
    anchors: bool = True
    device: str = "auto"
    precision: str = "auto"
    link: LinkName | Literal["auto"] = "auto"
    loss: LossName = "squared"
    initial: int | None = None
    batch: int | None = None
    weights: Mapping[str, float] | None = None
    rule: str | None = None
    order: Sequence[str] | None = None

    def make_method(self, name: MethodName, spec: StudySpec) -> Method:
        """The method called ``name`` with these settings, for a study of ``spec``.

        Raises:
            SearchError: for an unknown method, and for settings that can't be sampled or fitted.
            RuleError: for a rule that isn't one over the study's tasks.
        """
        from mapmerge_core.methods.direct import DirectSearch
        from mapmerge_core.methods.map import MAP

        check_seed(self.seed)
        if self.points > MAX_POINTS:
            raise SearchError(f"{self.points} points are too many for one run: choose {MAX_POINTS} or fewer.")
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

    def _check_surrogates(
        self, name: MethodName, n_vectors: int, links: Sequence[tuple[LinkName, tuple[float, float]]]
    ) -> None:
        """Refuses, before anything is measured, what can't be fitted: wrong links, losses and budgets."""
        from mapmerge_core.search.design import anchors_outside
        from mapmerge_core.search.fitting import check_loss
        from mapmerge_core.search.links import make_link
        from mapmerge_core.search.surrogate import QuadraticSurrogate

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


@dataclass(frozen=True)
class Source:
    """A file as it was when its study was created."""

    role: str
    path: Path
    sha256: str
    n_bytes: int


def read_sources(spec: StudySpec) -> tuple[Source, ...]:
    """Hashes every file of a study (once per process, as long as size and time of change stay the same).

    Raises:
        StudyError: where a file is missing or can't be read.
    """
    return tuple(_read_source(role, path) for role, path in spec.files().items())


def check_sources(sources: Sequence[Source]) -> None:
    """Makes sure that a study's files are still those that its evaluations were made with.

    Raises:
        StudyError: naming the first file that is missing or has changed.
    """
    for source in sources:
        now = _read_source(source.role, source.path)
        if now.sha256 != source.sha256:
            raise StudyError(
                f"{source.path} has changed since this study was created, and evaluations of two different "
                "files can't be mixed: restore the file or start a new study."
            )


def _read_source(role: str, path: Path) -> Source:
    try:
        stat = path.stat()
        return Source(role, path, _hash_file(path, stat.st_size, stat.st_mtime_ns), stat.st_size)
    except OSError as error:
        raise StudyError(f"{path} ({role}) can't be read: {error.strerror or error}.") from error


@lru_cache(maxsize=1024)
def _hash_file(path: Path, n_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001 - size and time are the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ManifestTask:
    """A task that a zoo offers."""

    name: str
    title: str
    checkpoint: Path
    data: Path


@dataclass(frozen=True)
class Manifest:
    """A folder of models that belong together, as its manifest.json describes it; all paths are absolute."""

    name: str
    title: str
    family: str
    architecture: str
    pretrained: Path
    tasks: tuple[ManifestTask, ...]


def read_manifest(folder: Path | str) -> Manifest:
    """Reads the manifest.json of a folder of models.

    Raises:
        StudyError: where there is none, or it isn't what a manifest should be.
    """
    folder = absolute(folder)
    path = folder / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"{folder} has no manifest.json: choose a folder with one, or add the checkpoints one by one."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} can't be read as JSON: {error}.") from error
    try:
        name, architecture = _text(values, "name"), _text(values, "architecture")
        if architecture.endswith(".json"):
            architecture = str(folder / architecture)
        family, pretrained = _text(values, "family"), folder / _text(values, "pretrained")
        tasks = tuple(
            ManifestTask(
                name=_text(task, "name"),
                title=_text({"title": task["name"]} | task, "title"),
                checkpoint=folder / _text(task, "checkpoint"),
                data=folder / _text(task, "data"),
            )
            for task in _list(values, "tasks")
        )
        title = _text({"title": name} | values, "title")
    except KeyError as error:
        raise StudyError(f"{path} has no {error}: add it, as the README's manifest shows.") from error
    except TypeError as error:
        raise StudyError(f"{path} isn't a manifest ({error}): compare it with the README's.") from error
    names = [task.name for task in tasks]
    for task_name in names:
        if names.count(task_name) > 1:
            raise StudyError(f"{path} has two tasks called '{task_name}': give each a name of its own.")
    return Manifest(name, title, family, architecture, pretrained, tasks)


def _list(values: dict[str, Any], key: str) -> list[Any]:
    found = values[key]
    if not isinstance(found, list):
        raise TypeError(f"'{key}' isn't a list")
    return found


def _text(values: object, key: str) -> str:
    """A manifest's text (KeyError where there is none, TypeError where it is something else)."""
    if not isinstance(values, dict):
        raise TypeError(f"{json.dumps(values)[:40]} isn't an object")
    text = values[key]
    if not isinstance(text, str) or not text.strip():
        raise TypeError(f"'{key}' is {json.dumps(text)[:40]} and should be text")
    return text


def spec_from_manifest(folder: Path | str, task_names: Sequence[str] | None = None) -> StudySpec:
    """The study of a zoo's tasks, all of them or those named, in the order given.

    Raises:
        StudyError: for a folder without a good manifest, and for a task that it doesn't have.
    """
    manifest = read_manifest(folder)
    offered = {task.name: task for task in manifest.tasks}
    chosen = list(offered) if task_names is None else list(task_names)
    for name in chosen:
        if name not in offered:
            raise StudyError(f"{folder} has no task '{name}': choose among {', '.join(offered)}.")
    return StudySpec(
        family=manifest.family,
        architecture=manifest.architecture,
        pretrained=manifest.pretrained,
        tasks=tuple(TaskSpec(name, offered[name].checkpoint, offered[name].data) for name in chosen),
    )


def demo_tasks(n_tasks: int, zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Names of the tasks that the demo with ``n_tasks`` merges, of the demo zoo or of another.

    Raises:
        StudyError: for fewer than two tasks, for more than the zoo has, and for a folder without a manifest.
    """
    offered = [task.name for task in read_manifest(zoo).tasks]
    if not 2 <= n_tasks <= len(offered):
        raise StudyError(f"The demo merges 2 to {len(offered)} tasks, not {n_tasks}.")
    known = [name for name in _DEMO_ORDER if name in offered]
    return tuple([*known, *(name for name in offered if name not in known)][:n_tasks])


def demo_settings(n_tasks: int, points: int | None = None, seed: int = 0) -> RunSettings:
    """What the demo with ``n_tasks`` evaluates.

    The paper's budgets, but at most 100 points, enough for the demo's models. Many full task vectors at once
    ruin a model, so from five tasks on the box ends at 0.6.
    """
    from mapmerge_core.methods.map import MAP

    if points is None:
        points = min(MAP.default_points(n_tasks), 100)
    return RunSettings(points=points, seed=seed, high=1.0 if n_tasks <= 4 else 0.6)
