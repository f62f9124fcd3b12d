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
    from mapmerge_core.studies.analysis.analysis import analyse
    from mapmerge_core.studies.config import Compute

    if sum(each is not None for each in (rule, preference, at, unlabelled)) != 1:
        raise StudyError("Choose by one of --rule, --preference, --at and --unlabelled.")
    if refine and (merge is None or rule is None):
        raise StudyError("--refine goes with --merge and --rule: leave it out.")
    if classes is not None and unlabelled is None:
        raise StudyError("--classes goes with --unlabelled: leave it out.")
    if at is not None and merge is None:
        raise StudyError("A point is one of a merge: say which with --merge.")
    check_device(device)
    session, compute = Session(), Compute(device=device)
    store = session.store
    kept = store.studies.find(study)
    stored = None if merge is None else find_merge(store, kept, merge)
    if refine and stored is not None and rule is not None:
        _refine(session, kept, stored, rule, compute)
    merges = None if stored is None else [stored.id]
    analysis = analyse(store, kept.id, merges=merges, with_front=rule is not None or preference is not None)
    message, misses, choice = "", [], None
    how: dict[str, Any]
    if rule is not None:
        ruled = analysis.by_rule(rule)
        merge_id, x, message, how = ruled.merge_id, ruled.x, ruled.message, {"kind": "rule", "text": rule}
        misses = [{"objective": miss.name, "wanted": miss.wanted, "got": miss.got} for miss in ruled.misses]
    elif preference is not None:
        weights = parse_weights(preference, analysis.names)
        row = analysis.by_preference(weights, normalise=normalise)
        merge_id, x = analysis.fitted_front.keys[row], analysis.fitted_front.x[row]
        how = {"kind": "preference", "weights": weights, "normalise": normalise}
    elif at is not None and stored is not None:
        merge_id, x, how = stored.id, _point(stored, at), {"kind": "point"}
    else:
        choice, how = _look_at_unlabelled(session, kept, unlabelled or "", classes, stored, compute)
        merge_id, x, message = choice.merge_ids[choice.best], choice.points[choice.best], _surest(choice)
    feasible = not misses
    row_id = store.picks.add(merge_id, x, how, name=name).id if feasible else None
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
                "message": message,
                "misses": misses,
                "pick": {
                    "id": row_id,
                    "merge": store.merges.get(merge_id).name,
                    "x": dict(zip(space.names, x.tolist(), strict=True)),
                    **predictions,
                    "measured": measured,
                },
            }
            | _unlabelled_values(choice)
        )
    else:
        if message:
            say(message)
        say(f"Pick {row_id}:" if row_id is not None else "The nearest model, which is not kept as a pick:")
        _say(analysis, merge_id, x, measured)
    if not feasible:
        raise typer.Exit(INFEASIBLE)


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
            session.store, study.id, source, evaluator, merge_id=stored and stored.id, progress=progress
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
