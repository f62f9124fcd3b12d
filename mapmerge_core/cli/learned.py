"""What commands do with learned sets: show what was measured of them, pick and export their models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.cli.output import print_json, progress_bar, say
from mapmerge_core.cli.reports import say_chosen, say_models
from mapmerge_core.cli.session import INFEASIBLE, parse_weights
from mapmerge_core.errors import StudyError
from mapmerge_core.studies.analysis.entries import shares_of
from mapmerge_core.studies.runs.exporting import export_learned_set, slug
from mapmerge_core.studies.analysis.learned import learned_set, measured_at, run_name
from mapmerge_core.studies.runs.learning import measure_learned, refine_by_rule
from mapmerge_core.studies.runs.unlabelled import choose_unlabelled
from mapmerge_core.tasks.data_source import DataSource

if TYPE_CHECKING:
    from argparse import Namespace

    from mapmerge_core.cli.session import Session
    from mapmerge_core.studies.analysis.learned import LearnedRule, LearnedSet
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice


def learned_of(store: Store, study: StudyRow, run_id: int) -> LearnedSet:
    """What a study's run has learned.

    Raises:
        StudyError: The study has no such run, or it hasn't learned a set.
    """
    if run_id not in [row.id for row in store.runs(study.id)]:
        raise StudyError(f"'{study.name}' has no run {run_id}.")
    return learned_set(store, run_id)


def report_run(store: Store, study: StudyRow, row: RunRow, *, as_json: bool) -> int:
    """Prints what a run of Pareto Merging measured on the validation split."""
    learned = learned_set(store, row.id)
    if as_json:
        print_json(
            {
                "study": {"id": study.id, "name": study.name},
                "run": {
                    "id": row.id,
                    "method": row.method,
                    "status": row.status,
                    "points": row.settings.points,
                },
                "evaluations": row.n_evaluations,
                "preferences": learned.gammas,
                "measured": learned.values,
            }
        )
        return 0
    say(f"Study {study.id}, {study.name}: {row.n_evaluations} evaluations, {row.seconds:.1f} s.")
    say(f"{run_name(row, study.spec)} has a model for every preference; on the validation split, some have:")
    say_models(learned.tasks, learned.metrics, learned.gammas, learned.values, symbol="γ")
    return 0


def show_front(store: Store, study: StudyRow, run_id: int, *, as_json: bool) -> int:
    """Prints the measured preferences of a learned set whose models no other's dominates."""
    learned = learned_of(store, study, run_id)
    rows = learned.front()
    gammas, values = learned.gammas[rows], learned.values[rows]
    if as_json:
        run = {"id": run_id, "method": learned.run.method}
        front = {"size": len(rows), "preferences": gammas, "measured": values}
        print_json({"tasks": learned.tasks, "run": run, "front": front})
    else:
        say(f"The front of run {run_id} has {len(rows)} models (preferences, then measured metrics):")
        say_models(learned.tasks, learned.metrics, gammas, values, symbol="γ")
    return 0


def pick_learned(session: Session, study: StudyRow, options: Namespace) -> int:
    """Picks a model of a learned set by preference, by rule or for unlabelled data."""
    if options.normalise:
        raise StudyError("A preference for a learned set weighs no metrics: leave --normalise out.")
    store, run_id = session.store, options.learned
    learned = learned_of(store, study, run_id)
    how: dict[str, Any] = {"kind": "preference"}
    rule: LearnedRule | None = None
    choice: UnlabelledChoice | None = None
    if options.rule is not None:
        rule = _by_rule(session, study, learned, options)
        gamma, how = rule.gamma, {"kind": "rule", "text": options.rule}
    elif options.unlabelled is not None:
        choice, how = look_at_unlabelled(session, study, options)
        gamma = choice.points[choice.best]
    else:
        gamma = shares_of(parse_weights(options.preference, learned.tasks), learned.tasks)
    feasible = rule is None or rule.feasible
    row = store.add_learned_pick(run_id, gamma, how, name=options.name) if feasible else None
    if row and options.measure:
        _measure(session, study, run_id, gamma, options.device)
    learned = learned_set(store, run_id)  # a rule's refinement measured more of it
    known = measured_at(*store.learned_table(run_id, "test"), gamma[None])[0]
    measured = {} if np.isnan(known).all() else dict(zip(learned.tasks, known.tolist(), strict=True))
    predicted, lower, upper, is_measured = learned.predict(gamma)
    message = rule.message if rule else ""
    if options.json:
        metrics = {"predicted": predicted, "lower": lower, "upper": upper}
        print_json(
            {
                "study": {"id": study.id, "name": study.name},
                "run": {"id": run_id, "method": learned.run.method},
                "feasible": feasible,
                "message": message,
                "pick": {
                    "id": row.id if row else None,
                    "preference": dict(zip(learned.tasks, gamma.tolist(), strict=True)),
                    "interpolated": not is_measured,
                    **{
                        name: dict(zip(learned.tasks, values.tolist(), strict=True))
                        for name, values in metrics.items()
                    },
                    "measured": measured,
                },
            }
            | unlabelled_values(choice)
        )
    else:
        for line in (message, unlabelled_text(choice)):
            if line:
                say(line)
        say(f"Learned pick {row.id}:" if row else "The nearest model, which is not kept as a pick:")
        say_chosen(learned.tasks, learned.metrics, gamma, (predicted, lower, upper), measured, "preference")
        if not is_measured:
            say("It is predicted between measured preferences.")
    return 0 if feasible else INFEASIBLE


def look_at_unlabelled(
    session: Session, study: StudyRow, options: Namespace
) -> tuple[UnlabelledChoice, dict[str, Any]]:
    """Tries models of a learned set or of the front on unlabelled data; and how a pick of one is kept."""
    names: tuple[str, ...] | Path | None = None
    if options.classes is not None:
        is_file = options.classes.endswith((".txt", ".json"))
        typed = tuple(name.strip() for name in options.classes.split(",") if name.strip())
        names = Path(options.classes) if is_file else typed
    source = DataSource(path=options.unlabelled, class_names=names)
    evaluator = session.evaluators.get(study, options.device)
    with progress_bar("Unlabelled data") as progress:
        choice = choose_unlabelled(
            session.store, study.id, source, evaluator, run_id=options.learned, progress=progress
        )
    return choice, {"kind": "unlabelled", "data": str(source.path)}


def unlabelled_values(choice: UnlabelledChoice | None) -> dict[str, Any]:
    """What was seen of unlabelled data, for JSON."""
    if choice is None:
        return {}
    values = {"points": choice.points, "entropies": choice.entropies, "best": choice.best}
    return {"unlabelled": {"images": choice.n_images} | values}


def unlabelled_text(choice: UnlabelledChoice | None) -> str:
    """The same in a sentence; "" where nothing was looked at."""
    if choice is None:
        return ""
    return (
        f"Of {len(choice.points)} models this one is the surest of the {choice.n_images:,} images: the mean "
        f"entropy of its predictions is {choice.entropies[choice.best]:.3f} nats, of all "
        f"{choice.entropies.mean():.3f}."
    )


def export_set(store: Store, study: StudyRow, run_id: int, out: Path | None) -> Path:
    """Writes a learned set, by default to the study's folder of exports."""
    learned_of(store, study, run_id)
    return export_learned_set(store, run_id, out or store.folder / "exports" / slug(study.name))


def _by_rule(session: Session, study: StudyRow, learned: LearnedSet, options: Namespace) -> LearnedRule:
    found = learned.by_rule(options.rule)
    if not options.refine:
        return found
    evaluator = session.evaluators.get(study, options.device)
    with progress_bar("Measuring near the rule") as progress:
        return refine_by_rule(session.store, learned.run.id, evaluator, options.rule, progress=progress)


def _measure(session: Session, study: StudyRow, run_id: int, gamma: np.ndarray, device: str) -> None:
    evaluator = session.evaluators.get(study, device)
    with progress_bar("Measuring") as progress:
        measure_learned(session.store, run_id, evaluator, gamma[None], split="test", progress=progress)
