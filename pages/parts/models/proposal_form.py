"""A study of a folder's models and datasets, as it is proposed, for a person to complete and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.registries import FAMILIES, METRICS
from mapmerge_core.studies.config import StudyConfig, TaskConfig
from mapmerge_core.studies.discovery.folder_contents import look_into
from mapmerge_core.studies.discovery.proposing import Proposal, propose
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import find_family
from mapmerge_core.weights.io.hub import HubRef, parse_source
from pages.parts.shared import shell

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Contents:
    """What a folder suggests and holds; paths inside it by their names relative to it.

    Attributes:
        folder: The folder.
        proposal: The study that it suggests.
        models: Checkpoints.
        data: Datasets.
        architectures: Configuration files of open_clip.
    """

    folder: Path
    proposal: Proposal
    models: tuple[str, ...]
    data: tuple[str, ...]
    architectures: tuple[str, ...]

    def name(self, place: Path | HubRef | str | None) -> str | None:
        """Return a place as the form shows it."""
        if isinstance(place, Path) and place.is_relative_to(self.folder):
            return place.relative_to(self.folder).as_posix()
        return None if place is None else str(place)

    def path(self, name: str) -> str:
        """Return what a name in the form stands for: a path, or an address as it is."""
        return name if "://" in name else str(self.folder / Path(name).expanduser())


@st.cache_data(show_spinner="Looking into the folder…", ttl=10, max_entries=8)
def contents(folder: Path) -> Contents:
    """Look into a folder; its files may be others in ten seconds.

    Raises:
        StudyError: It can't be read.
    """
    proposal = propose(folder)
    held = look_into(folder)
    names = [
        tuple(path.relative_to(folder).as_posix() for path in paths)
        for paths in ([model.path for model in held.models], held.data, held.architectures)
    ]
    return Contents(folder, proposal, *names)


def draw(folder: Path) -> StudyConfig | None:
    """Draw the form; None while something is missing, which it says.

    Raises:
        MapMergeError: The folder can't be read, or what was typed can't be used.
        OSError: The folder can't be read.
    """
    held = contents(folder)
    if not held.models:
        raise StudyError(
            f"{folder} holds 0 checkpoints: merging takes a pre-trained model and one fine-tuned model or "
            "more (.safetensors, .pt, .pth, .bin, or folders of transformers)."
        )
    st.caption("This folder has no manifest.json. This is what it seems to hold: change what is wrong.")
    if held.proposal.notes:
        st.caption("\n".join(f"- {shell.plain(note)}" for note in held.proposal.notes))
    choices, tables = st.container(), st.container()
    # What lies elsewhere is said below, but is offered above.
    others, datasets = elsewhere(held)
    with choices:
        family, architecture, pretrained = facts_form(held, others)
    with tables:
        models = models_table(held, pretrained, others)
        tasks = tasks_table(held, family, models, datasets)
    try:
        return config_of(held, family, architecture, pretrained, models, tasks)
    except MapMergeError as error:
        st.info(shell.plain(str(error)), icon=":material/help:")
        return None


def facts_form(held: Contents, others: Sequence[str]) -> tuple[str, str, str | None]:
    """Ask for the family, the architecture where it needs one, and the pre-trained model."""
    left, middle, right = st.columns(3)
    proposal = held.proposal
    titles = {family.name: family.title for family in FAMILIES}
    family = _choose(
        left,
        "Family of models",
        list(titles),
        proposal.family or None,
        f"family_{held.folder}",
        "Choose one, or type module:function for your own",
        titles,
    )
    pretrained = _choose(
        middle,
        "Pre-trained model",
        [*dict.fromkeys([*held.models, *others])],
        held.name(proposal.pretrained),
        f"pretrained_{held.folder}",
        "Which model were the others fine-tuned from?",
    )
    needs = family is None or find_family(family).needs_architecture
    if not needs and not proposal.architecture:
        return family or "", "", pretrained
    architecture = _choose(
        right,
        "Architecture",
        list(held.architectures),
        held.name(Path(proposal.architecture)) if proposal.architecture else None,
        f"architecture_{held.folder}",
        "A configuration file, or type a name such as ViT-B-32",
    )
    if architecture and architecture.endswith(".json"):
        architecture = held.path(architecture)
    return family or "", architecture or "", pretrained


def _choose(
    place: DeltaGenerator,
    label: str,
    options: list[str],
    guess: str | None,
    key: str,
    placeholder: str,
    titles: dict[str, str] | None = None,
) -> str | None:
    """Ask for one of the options, or for something that is typed; the guess is chosen at first."""
    if guess and guess not in options:
        options = [*options, guess]
    chosen: str | None = place.selectbox(
        label,
        options,
        options.index(guess) if guess else None,
        format_func=lambda name: (titles or {}).get(name, name),
        key=key,
        accept_new_options=True,
        placeholder=placeholder,
    )
    return chosen


def elsewhere(held: Contents) -> tuple[list[str], list[str]]:
    """Ask for models and datasets that lie somewhere else."""
    given = [held.name(task.data.path) for task in held.proposal.tasks if task.data]
    outside = [name for name in given if name and name not in held.data]
    with st.expander("Add models or datasets from elsewhere", icon=":material/add_link:", key="elsewhere"):
        left, right = st.columns(2)
        st.caption("More settings, such as columns, splits or a limit: save the study as a file and edit its text.")
        models = left.multiselect(
            "Models",
            [],
            key=f"other_models_{held.folder}",
            accept_new_options=True,
            placeholder="Type a path, or hf://organisation/name",
        )
        datasets = right.multiselect(
            "Datasets",
            [],
            key=f"other_data_{held.folder}",
            accept_new_options=True,
            placeholder="Type a path, hf://datasets/organisation/name or torchvision://NAME",
        )
    return models, [*dict.fromkeys([*held.data, *outside, *datasets])]


def models_table(held: Contents, pretrained: str | None, others: Sequence[str]) -> Rows:
    """Draw one row a fine-tuned model; returns those that are to be merged."""
    proposed = {held.name(place): name for name, place in held.proposal.models.items()}
    places = [name for name in dict.fromkeys([*proposed, *held.models, *others]) if name and name != pretrained]
    frame = pd.DataFrame(
        {"use": True, "name": [proposed.get(place) or model_name(place) for place in places], "checkpoint": places}
    )
    edited = st.data_editor(
        frame,
        # Rows of other models are other rows.
        key=f"models_{held.folder}_{pretrained}_{len(places)}",
        hide_index=True,
        width="stretch",
        column_config={
            "use": st.column_config.CheckboxColumn("Merge", width="small"),
            "name": st.column_config.TextColumn("Model", required=True),
            "checkpoint": st.column_config.TextColumn("Fine-tuned checkpoint", disabled=True),
        },
    )
    return _rows(edited[edited["use"]])


def tasks_table(held: Contents, family: str, models: Rows, datasets: list[str]) -> Rows:
    """Draw one row a task; a task may have no model: a skill to keep."""
    measurable = find_family(family).measurable() if family else ()
    metrics = [metric.name for metric in measurable] or list(METRICS.names)
    usual = find_family(family).usual_metric() if family else None
    names = {held.name(place): name for name, place in held.proposal.models.items()}
    named = {names[model["checkpoint"]]: model["name"] for model in models if model["checkpoint"] in names}
    tasks = [
        (task, named[task.model] if task.model else None)
        for task in held.proposal.tasks
        if task.model is None or task.model in named
    ]
    # Models that nothing was proposed for have a task of their own.
    others = [model["name"] for model in models if model["checkpoint"] not in names]
    tasks += [(TaskConfig(name=name or ""), name) for name in others]
    rows = [
        {
            "task": task.name,
            "data": held.name(task.data.path) if task.data else None,
            "model": model,
            "metrics": [metric.name for metric in task.metrics] or ([usual.name] if usual else []),
        }
        for task, model in tasks
    ]
    edited = st.data_editor(
        pd.DataFrame(rows, columns=["task", "data", "model", "metrics"]),
        # Tasks of other models are other rows.
        key=f"tasks_{held.folder}_{[model['checkpoint'] for model in models]}_{family}",
        hide_index=True,
        num_rows="dynamic",
        width="stretch",
        column_config={
            "task": st.column_config.TextColumn("Task", required=True),
            "data": st.column_config.SelectboxColumn("Dataset", options=datasets),
            "model": st.column_config.SelectboxColumn(
                "Fine-tuned model", options=[model["name"] for model in models], help="None: a skill to keep."
            ),
            "metrics": st.column_config.MultiselectColumn("Metrics", options=metrics),
        },
    )
    return _rows(edited)


def _rows(frame: pd.DataFrame) -> Rows:
    """Return a table's rows, None in the place of whatever pandas has for an empty cell."""
    return [
        {name: None if not isinstance(cell, list) and pd.isna(cell) else cell for name, cell in row.items()}
        for row in frame.to_dict("records")
    ]


def model_name(place: str) -> str:
    """Return what a model is called at first."""
    try:
        source = parse_source(place)
    except MapMergeError:
        return place
    return source.name if isinstance(source, HubRef) else source.stem


def config_of(
    held: Contents, family: str, architecture: str, pretrained: str | None, models: Rows, tasks: Rows
) -> StudyConfig:
    """Return the study that the form says.

    Raises:
        MapMergeError: Something is missing or can't be used.
    """
    if not family:
        raise StudyError("Say which family of models these are.")
    if not pretrained:
        raise StudyError("Say which model the others were fine-tuned from.")
    names = [row["name"] or "" for row in models]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"Two models are called '{name}': give every model a name of its own.")
    return StudyConfig(
        family=family,
        architecture=architecture,
        pretrained=parse_source(held.path(pretrained)),
        models={row["name"] or "": parse_source(held.path(row["checkpoint"])) for row in models},
        tasks=tuple(task_of(held, row) for row in tasks),
        options=held.proposal.options,
    )


def task_of(held: Contents, row: dict[str, Any]) -> TaskConfig:
    """Return a row's task; what was proposed of its dataset stays, unless another one is chosen."""
    proposed = {held.name(task.data.path): task.data for task in held.proposal.tasks if task.data}
    data = proposed.get(row["data"]) or (DataSource(path=held.path(row["data"])) if row["data"] else None)
    metrics = tuple(METRICS[name] for name in row["metrics"] or ())
    return TaskConfig(name=row["task"] or "", data=data, model=row["model"], metrics=metrics)
