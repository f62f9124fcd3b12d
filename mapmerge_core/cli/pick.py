"""The command ``pick``: choose a model by a rule, a preference, a point, or for unlabelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mapmerge_core.cli.options import Device, Json, Name, Preference, Rule, Study, parse_weights
from mapmerge_core.errors import PointError, StudyError

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.cli.session import Session
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis
    from mapmerge_core.studies.config import Compute
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice
    from mapmerge_core.studies.store import StoredMerge
    from mapmerge_core.studies.store import Study as KeptStudy


def pick(
    study: Study,
    *,
    rule: Rule = None,
    preference: Preference = None,
    at: Annotated[
        str | None, typer.Option(metavar="X,Y,...", help="The very point of a merge: its coordinates in order.")
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="The model that is surest of these images, whose labels aren't read."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="The names of the images' classes, or a .txt or .json file of them."),
    ] = None,
    merge: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this merge, by its name or number; of all if left out.")
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Measure more of the merge near the rule first.")] = False,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Weigh objectives as shares of the own models'.")
    ] = False,
    name: Name = "",
    measure: Annotated[bool, typer.Option("--measure", help="Measure the pick on the test split.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Pick a model of a study's front."""
    from mapmerge_core.cli.opening import find_merge
    from mapmerge_core.cli.output import print_json, say
    from mapmerge_core.cli.reports import by_name
    from mapmerge_core.cli.session import INFEASIBLE, Session, check_device
    from mapmerge_core.studies.config import Compute

    _check_options(locals())
    check_device(device)
    session, compute = Session(), Compute(device=device)
    store = session.store
    kept = store.studies.find(study)
    stored = None if merge is None else find_merge(store, kept, merge)
    if refine and stored is not None and rule is not None:
        _refine(session, kept, stored, rule, compute)
    chosen = _Chosen(session, kept, stored, compute)
    if rule is not None:
        chosen.by_rule(rule)
    elif preference is not None:
        chosen.by_preference(preference, normalise=normalise)
    elif at is not None and stored is not None:
        chosen.at_point(stored, at)
    else:
        chosen.by_unlabelled(unlabelled or "", classes)
    analysis, merge_id, x = chosen.analysis, chosen.merge_id, chosen.x
    feasible = not chosen.misses
    row_id = store.picks.add(merge_id, x, chosen.how, name=name).id if feasible else None
    if feasible and measure:
        session.measure(kept, merge_id, x, compute)
    measured = session.measured(kept, merge_id, x)
    if json:
        predictions = dict.fromkeys(("predicted", "lower", "upper"))
        try:
            parts = analysis.predict(merge_id, x)
            predictions = {kind: by_name(analysis, part) for kind, part in zip(predictions, parts, strict=True)}
        except StudyError:  # a point can be picked before there are surrogates
            pass
        space = store.merges.get(merge_id).space
        print_json(
            {
                "study": {"id": kept.id, "name": kept.name},
                "feasible": feasible,
                "message": chosen.message,
                "misses": chosen.misses,
                "pick": {
                    "id": row_id,
                    "merge": store.merges.get(merge_id).name,
                    "x": dict(zip(space.names, x.tolist(), strict=True)),
                    **predictions,
                    "measured": measured,
                },
            }
            | _unlabelled_values(chosen.tried)
        )
    else:
        if chosen.message:
            say(chosen.message)
        say(f"Pick {row_id}:" if row_id is not None else "The nearest model, which is not kept as a pick:")
        _say(analysis, merge_id, x, measured)
    if not feasible:
        raise typer.Exit(INFEASIBLE)


def _check_options(typed: dict[str, Any]) -> None:
    """Refuse options that don't go together."""
    if sum(typed[name] is not None for name in ("rule", "preference", "at", "unlabelled")) != 1:
        raise StudyError("Choose by one of --rule, --preference, --at and --unlabelled.")
    for name, needed in (
        ("refine", ("merge", "rule")),
        ("classes", ("unlabelled",)),
        ("normalise", ("preference",)),
        ("at", ("merge",)),
    ):
        if typed[name] and any(typed[other] is None for other in needed):
            others = " and ".join(f"--{other}" for other in needed)
            raise StudyError(f"--{name} goes with {others}: give all of them, or leave it out.")


class _Chosen:
    """A model as a person chose it.

    Attributes:
        analysis: What it is predicted by.
        merge_id, x: The model.
        how: How it was chosen, as a pick keeps it.
        message: One sentence, "" where there is nothing to say.
        misses: The thresholds of a rule that it misses.
        tried: The models that were tried on unlabelled data, if any were.
    """

    merge_id: int
    x: np.ndarray

    def __init__(self, session: Session, study: KeptStudy, stored: StoredMerge | None, compute: Compute) -> None:
        self._session, self._study, self._stored, self._compute = session, study, stored, compute
        self.how: dict[str, Any] = {}
        self.message = ""
        self.misses: list[dict[str, Any]] = []
        self.tried: UnlabelledChoice | None = None

    def _analyse(self, *, with_front: bool) -> StudyAnalysis:
        from mapmerge_core.studies.analysis import analyse

        merges = None if self._stored is None else [self._stored.id]
        self.analysis = analyse(self._session.store, self._study.id, merges=merges, with_front=with_front)
        return self.analysis

    def by_rule(self, rule: str) -> None:
        ruled = self._analyse(with_front=True).by_rule(rule)
        self.merge_id, self.x, self.message = ruled.merge_id, ruled.x, ruled.message
        self.how = {"kind": "rule", "text": rule}
        self.misses = [{"objective": miss.name, "wanted": miss.wanted, "got": miss.got} for miss in ruled.misses]

    def by_preference(self, text: str, *, normalise: bool) -> None:
        analysis = self._analyse(with_front=True)
        weights = parse_weights(text, analysis.names)
        row = analysis.by_preference(weights, normalise=normalise)
        self.merge_id, self.x = analysis.fitted_front.keys[row], analysis.fitted_front.x[row]
        self.how = {"kind": "preference", "weights": weights, "normalise": normalise}

    def at_point(self, stored: StoredMerge, text: str) -> None:
        self.merge_id, self.x, self.how = stored.id, _point(stored, text), {"kind": "point"}
        self._analyse(with_front=False)

    def by_unlabelled(self, place: str, classes: str | None) -> None:
        tried, self.how = _look_at_unlabelled(self._session, self._study, place, classes, self._stored, self._compute)
        self.tried, self.merge_id, self.x = tried, tried.merge_ids[tried.best], tried.points[tried.best]
        self.message = _surest(tried)
        self._analyse(with_front=False)


def _say(analysis: StudyAnalysis, merge_id: int, x: np.ndarray, measured: dict[str, float]) -> None:
    from mapmerge_core.cli.output import metric_text, print_table
    from mapmerge_core.cli.reports import say_model

    try:
        say_model(analysis, merge_id, x, measured)
    except StudyError:
        rows = [(o.name, metric_text(measured.get(o.name), o.metric)) for o in analysis.objectives]
        print_table(("objective", "measured"), rows)


def _point(stored: StoredMerge, text: str) -> np.ndarray:
    """Read a point such as "0.3,0.5"."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise PointError(
            f"'{text}' is no point: write its {stored.space.n} coordinates ({', '.join(stored.space.names)}), such as "
            "0.3,0.5."
        ) from None
    return stored.space.point(values)


def _refine(session: Session, study: KeptStudy, stored: StoredMerge, rule: str, compute: Compute) -> None:
    from mapmerge_core.cli.output import progress_bar
    from mapmerge_core.studies.runs.refining import refine

    evaluator = session.evaluators.get(study, compute)
    with progress_bar("Measuring near the rule") as progress:
        refine(session.store, stored.id, evaluator, rule, progress=progress)


def _look_at_unlabelled(
    session: Session, study: KeptStudy, place: str, classes: str | None, stored: StoredMerge | None, compute: Compute
) -> tuple[UnlabelledChoice, dict[str, Any]]:
    """Try models on unlabelled data; and say how a pick of one is kept."""
    from mapmerge_core.cli.output import progress_bar
    from mapmerge_core.studies.runs.unlabelled import choose_unlabelled
    from mapmerge_core.tasks.data_source import DataSource

    names: tuple[str, ...] | Path | None = None
    if classes is not None:
        typed = tuple(name.strip() for name in classes.split(",") if name.strip())
        names = Path(classes) if classes.endswith((".txt", ".json")) else typed
    source = DataSource(path=place, class_names=names)
    evaluator = session.evaluators.get(study, compute)
    with progress_bar("Unlabelled data") as progress:
        choice = choose_unlabelled(
            session.store,
            study.id,
            source,
            evaluator,
            merge_id=None if stored is None else stored.id,
            progress=progress,
        )
    return choice, {"kind": "unlabelled", "data": str(source.path)}


def _unlabelled_values(choice: UnlabelledChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    tried = {"merges": choice.merge_ids, "points": choice.points, "entropies": choice.entropies, "best": choice.best}
    return {"unlabelled": {"images": choice.n_images} | tried}


def _surest(choice: UnlabelledChoice) -> str:
    return (
        f"Of {len(choice.points)} models this one is the surest of the {choice.n_images:,} images: the mean "
        f"entropy of its predictions is {choice.entropies[choice.best]:.3f} nats, of all "
        f"{choice.entropies.mean():.3f}."
    )
