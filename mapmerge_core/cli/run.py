"""The command ``run``: evaluate points of a merge of a new study, or go on with one."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mapmerge_core.cli.options import Json, Merge, Place, Precision, Tasks, Vectors, Zoo, divide_settings, with_settings
from mapmerge_core.errors import StudyError

if TYPE_CHECKING:
    from mapmerge_core.studies.config import RunConfig, StudyConfig
    from mapmerge_core.studies.config.study_file import StudyFile
    from mapmerge_core.studies.store import Run, Store, Study

QUICK = 500  # as studies.config.QUICK_IMAGES, which --help needn't load


@with_settings
def run(
    place: Place = None,
    *,
    study: Annotated[
        str | None, typer.Option(help="Go on with this study: resume its run, or add one with other options.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run on the bundled models.")] = False,
    tasks: Tasks = None,
    zoo: Zoo = None,
    name: Annotated[str, typer.Option(help="The new study's name.")] = "",
    merge: Merge = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="A method; MAP if left out.")] = None,
    low: Annotated[float | None, typer.Option(help="The lowest coefficient; the merge's own if left out.")] = None,
    high: Annotated[float | None, typer.Option(help="The highest coefficient.")] = None,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Images of each task to measure points on; all if left out. A later run with more of them measures "
            "only the others.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"A quick run: --images {QUICK}.")] = False,
    link: Annotated[str | None, typer.Option(help="The surrogates' link; each metric's own if left out.")] = None,
    loss: Annotated[
        Literal["squared", "absolute", "huber"] | None, typer.Option(help="What the surrogates' fits minimise.")
    ] = None,
    precision: Precision = None,
    vectors: Vectors = None,
    device: Annotated[str | None, typer.Option(help="As for demo; auto if left out.")] = None,
    json: Json = False,
    settings: dict[str, Any],
) -> None:
    """Evaluate points of a merge: of a new study, of the demo, or of a study that there is."""
    from mapmerge_core.cli.opening import demo_of, open_study, read_place
    from mapmerge_core.cli.session import Session, check_device

    if sum([place is not None, study is not None, demo]) != 1:
        raise StudyError(
            "Name either a folder or a STUDY.yaml, for a new study, or with --study one to go on with, or take the "
            "bundled models with --demo."
        )
    if quick and images is not None:
        raise StudyError("--quick is --images 500: give one of them.")
    if zoo is not None and not demo:
        raise StudyError("--zoo goes with --demo: leave it out.")
    typed = _given(
        merge=merge, method=method, low=low, high=high, link=link, loss=loss, images=QUICK if quick else images
    )
    computed = _given(device=device, precision=precision, vectors=vectors)
    if device is not None:
        check_device(device)
    session = Session()
    if study is not None:
        if tasks is not None or name:
            raise StudyError(
                "--tasks and --name are for a new study: name a folder or a STUDY.yaml, or leave them out."
            )
        kept, row = _of_study(session.store, study, typed, computed, settings)
    else:
        file = read_place(place, tasks, name) if place else demo_of(tasks, None, 0, device or "auto", zoo)
        config = _configured(file, typed, computed, settings, is_demo=demo)
        config.check(file.config)
        kept = open_study(session.store, file)
        row = session.store.runs.find_same(kept.id, config) or session.store.runs.create(kept.id, config)
    if row.status == "done":
        others = "--points, --images or --seed" if kept.config.has_parts else "--points or --seed"
        sys.stderr.write(f"'{kept.name}' has done this run already: other {others} evaluate more.\n")
    else:
        row = session.run(row.id, replace(row.config.compute, **computed) if computed else None)
    _report(session.store, kept, row, as_json=json)


def _given(**values: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the options that were typed."""
    return {name: value for name, value in values.items() if value is not None}


def _of_study(
    store: Store, name: str, typed: dict[str, Any], computed: dict[str, Any], settings: dict[str, Any]
) -> tuple[Study, Run]:
    """Return a study that there is, and its unfinished run or a new one."""
    study = store.studies.find(name)
    runs = store.runs.all(study.id)
    if {"merge", "method"} & typed.keys() or "points" in settings:
        config = _changed(_usual(), study.config, typed, computed, settings)
        config.check(study.config)
        return study, store.runs.find_same(study.id, config) or store.runs.create(study.id, config)
    if typed or settings or set(computed) - {"device"}:
        raise StudyError(
            "A run goes on with the settings that it was started with: leave all but --device out, or give --points "
            "to evaluate more."
        )
    unfinished = [run for run in runs if run.status != "done"]
    if not unfinished:
        raise StudyError(f"'{study.name}' has no run to resume: give --points to evaluate more.")
    return study, unfinished[-1]


def _usual() -> RunConfig:
    from mapmerge_core.studies.config import RunConfig

    return RunConfig()


def _configured(
    file: StudyFile, typed: dict[str, Any], computed: dict[str, Any], settings: dict[str, Any], *, is_demo: bool
) -> RunConfig:
    """Return the run of a file or of the demo with what was typed, which comes first."""
    from mapmerge_core.studies.config.demo import demo_merge_settings

    usual = file.run
    if is_demo and "merge" in typed and typed["merge"] != usual.merge:
        usual = replace(_usual(), compute=usual.compute)  # its box and budget are task arithmetic's
    suited = demo_merge_settings(typed.get("merge", usual.merge), len(file.config.models)) if is_demo else {}
    return _changed(usual, file.config, typed, computed, settings, suited)


def _changed(
    usual: RunConfig,
    study: StudyConfig,
    typed: dict[str, Any],
    computed: dict[str, Any],
    settings: dict[str, Any],
    suited: dict[str, Any] | None = None,
) -> RunConfig:
    """Return a run with what was typed; settings of another merge or method than typed are forgotten.

    Args:
        usual: The run that holds where nothing was typed.
        study: The study.
        typed: Fields of the run.
        computed: Fields of its `Compute`.
        settings: Settings of the merge and the method.
        suited: Settings of the merge that hold unless others were typed.
    """
    merge, method = typed.pop("merge", usual.merge), typed.pop("method", usual.method)
    names = tuple(objective.name for objective in study.objectives)
    of_merge, of_method = divide_settings(settings, merge, method, names)
    before_merge = dict(usual.merge_settings) if merge == usual.merge else dict(suited or {})
    before_method = dict(usual.method_settings) if method == usual.method else {}
    if "rule" in of_method:
        before_method.pop("weights", None)
    if "weights" in of_method:
        before_method.pop("rule", None)
    return replace(
        usual,
        merge=merge,
        merge_settings=before_merge | of_merge,
        method=method,
        method_settings=before_method | of_method,
        compute=replace(usual.compute, **computed),
        **typed,
    )


def _report(store: Store, study: Study, row: Run, *, as_json: bool) -> None:
    """Print what came of a run."""
    from mapmerge_core.cli.output import metric_text, print_json, print_table, say
    from mapmerge_core.cli.reports import by_name, front_values, point_values, say_analysis
    from mapmerge_core.cli.session import INFEASIBLE
    from mapmerge_core.registries import METHODS
    from mapmerge_core.studies.analysis import analyse, run_result

    choice = run_result(store, row.id).choice if METHODS[row.config.method].is_front == "single" else None
    analysis = analyse(store, study.id, merges=[row.merge_id], with_front=choice is None)
    merge = analysis.merge(row.merge_id)
    if as_json:
        values: dict[str, Any] = {
            "study": {"id": study.id, "name": study.name},
            "run": {
                "id": row.id,
                "merge": row.config.merge,
                "method": row.config.method,
                "status": row.status,
                "points": row.config.points,
                "images": row.config.images,
            },
            "evaluations": row.n_evaluations,
            "r2": by_name(analysis, merge.r2),
        }
        if analysis.front is not None:
            values["front"] = front_values(analysis.front)
        if choice is not None:
            values["choice"] = {
                "x": choice.x,
                "predicted": by_name(analysis, choice.values),
                "feasible": choice.feasible,
                "message": choice.message,
            }
        print_json(values)
    else:
        say(f"Study {study.id}, {study.name}: {row.n_evaluations} evaluations, {row.seconds:.1f} s.")
        if choice is not None:
            say(choice.message)
            say(point_values(merge.merge.space.names, choice.x))
            print_table(
                ("objective", "value"),
                [(o.name, metric_text(v, o.metric)) for o, v in zip(analysis.objectives, choice.values, strict=True)],
            )
        elif analysis.front is None:
            say(merge.problem or "")
        else:
            say_analysis(analysis)
    if choice is not None and not choice.feasible:
        raise typer.Exit(INFEASIBLE)
