"""A study of a folder's models and datasets, as it is proposed, for a person to complete and change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st
from mapmerge_core.tasks.metric import METRICS, Metric

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.studies.config.study import StudySpec, TaskSpec
from mapmerge_core.studies.discovery.folder_contents import look_into
from mapmerge_core.studies.discovery.proposing import Proposal, propose
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import FAMILIES, family_info
from mapmerge_core.weights.io.hub import HubRef, parse_source
from pages.parts.shared import shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlit.delta_generator import DeltaGenerator

    from mapmerge_core.tasks.families import FamilyInfo


@dataclass(frozen=True)
class Contents:
    """What a folder suggests and holds; paths inside it by their names relative to it.

    Attributes:
        folder: It.
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

    def name(self, place: Path | HubRef | str) -> str:
        """A place as the form shows it."""
        inside = isinstance(place, Path) and place.is_relative_to(self.folder)
        return place.relative_to(self.folder).as_posix() if inside else str(place)

    def path(self, name: str) -> str:
        """What a name in the form stands for: a path, or an address as it is."""
        return name if "://" in name else str(self.folder / Path(name).expanduser())


@st.cache_data(show_spinner="Looking into the folder…", ttl=10, max_entries=8)
def contents(folder: Path) -> Contents:
    """Looks into a folder; its files may be others in ten seconds.

    Raises:
        StudyError: It can't be read.
    """
    proposal = propose(folder)
    found = look_into(folder)
    names = [
        tuple(path.relative_to(folder).as_posix() for path in paths)
        for paths in ([model.path for model in found.models], found.data, found.architectures)
    ]
    return Contents(folder, proposal, *names)


def draw(folder: Path) -> StudySpec | None:
    """The form; None while something is missing, which it says.

    Raises:
        MapMergeError: The folder can't be read, or what was typed can't be used.
        OSError: The folder can't be read.
    """
    held = contents(folder)
    if not held.models:
        raise StudyError(
            f"{folder} holds 0 checkpoints: merging takes a pre-trained model and at least two fine-tuned "
            "ones (.safetensors, .pt, .pth, .bin, or folders of transformers)."
        )
    said(held.proposal)
    choices, models = st.container(), st.container()
    # What lies elsewhere is said below, but is offered above.
    others, datasets = elsewhere(held)
    with choices:
        family, info, architecture, pretrained = facts_form(held, others)
    with models:
        rows = table(held, info, pretrained, others, datasets)
    if untouched(held, family, architecture, pretrained, rows) and held.proposal.missing:
        for sentence in held.proposal.missing:
            st.info(shell.plain(sentence), icon=":material/help:")
        return None
    try:
        return spec_of(held, family, architecture, pretrained, rows)
    except MapMergeError as error:
        st.info(shell.plain(str(error)), icon=":material/help:")
        return None


def said(proposal: Proposal) -> None:
    """What was guessed."""
    st.caption("This folder has no manifest.json. This is what it seems to hold: change what is wrong.")
    if proposal.notes:
        st.caption("\n".join(f"- {shell.plain(note)}" for note in proposal.notes))


def facts_form(held: Contents, others: Sequence[str]) -> tuple[str, FamilyInfo | None, str, str | None]:
    """The family, what is known of it, the architecture where it needs one, and the pre-trained model."""
    left, middle, right = st.columns(3)
    families = [*FAMILIES]
    guess = held.proposal.family
    if guess and guess not in families:
        families.append(guess)
    pretrained = pretrained_form(held, others, middle)
    family = left.selectbox(
        "Family of models",
        families,
        families.index(guess) if guess else None,
        format_func=lambda name: FAMILIES[name].title if name in FAMILIES else name,
        key=f"family_{held.folder}",
        accept_new_options=True,
        placeholder="Choose one, or type module:function for your own",
    )
    info = family_info(family) if family else None
    if info is not None and not info.needs_architecture and not held.proposal.architecture:
        return family, info, "", pretrained
    options = list(held.architectures)
    guess = held.name(Path(held.proposal.architecture)) if held.proposal.architecture else ""
    if guess and guess not in options:
        options.append(guess)
    architecture = right.selectbox(
        "Architecture",
        options,
        options.index(guess) if guess else None,
        key=f"architecture_{held.folder}",
        accept_new_options=True,
        placeholder="A configuration file, or type a name such as ViT-B-32",
    )
    architecture = architecture or ""
    if architecture.endswith(".json"):
        architecture = held.path(architecture)
    return family or "", info, architecture, pretrained


def elsewhere(held: Contents) -> tuple[list[str], list[str]]:
    """Models and datasets that lie somewhere else."""
    given = [task.data.path for task in held.proposal.tasks if task.data]
    outside = [name for name in map(held.name, given) if name not in held.data]
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


def pretrained_form(held: Contents, others: Sequence[str], place: DeltaGenerator) -> str | None:
    """The pre-trained model's name."""
    options = [*dict.fromkeys([*held.models, *others])]
    guess = held.name(held.proposal.pretrained) if held.proposal.pretrained else None
    if guess and guess not in options:
        options.append(guess)
    chosen: str | None = place.selectbox(
        "Pre-trained model",
        options,
        options.index(guess) if guess else None,
        key=f"pretrained_{held.folder}",
        accept_new_options=True,
        placeholder="Which model were the others fine-tuned from?",
    )
    return chosen


def table(
    held: Contents,
    info: FamilyInfo | None,
    pretrained: str | None,
    others: Sequence[str],
    datasets: list[str],
) -> list[dict[str, Any]]:
    """One row a fine-tuned model; those that are to be merged."""
    known = {held.name(task.checkpoint): task for task in held.proposal.tasks}
    names = [name for name in dict.fromkeys([*known, *held.models, *others]) if name != pretrained]
    metrics = (info.metrics if info else ()) or tuple(METRICS.values())
    usual = metrics[0]
    frame = pd.DataFrame(
        {
            "use": True,
            "task": [known[name].name if name in known else task_name(name) for name in names],
            "checkpoint": names,
            "data": [data_name(held, known.get(name)) for name in names],
            "metric": [metric_name(known.get(name), usual) for name in names],
        }
    )
    edited = st.data_editor(
        frame,
        # Rows of other models or metrics are other rows.
        key=f"files_{held.folder}_{pretrained}_{len(names)}_{usual.name}",
        hide_index=True,
        width="stretch",
        column_config={
            "use": st.column_config.CheckboxColumn("Merge", width="small"),
            "task": st.column_config.TextColumn("Task", required=True),
            "checkpoint": st.column_config.TextColumn("Fine-tuned model", disabled=True),
            "data": st.column_config.SelectboxColumn("Dataset", options=datasets),
            "metric": st.column_config.SelectboxColumn(
                "Metric", options=[metric.name for metric in metrics], required=True
            ),
        },
    )
    # An empty cell is None or NaN, as pandas likes.
    rows = edited[edited["use"]].to_dict("records")
    return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]


def task_name(name: str) -> str:
    """What a model's task is called at first."""
    try:
        source = parse_source(name)
    except MapMergeError:
        return name
    return source.name if isinstance(source, HubRef) else source.stem


def data_name(held: Contents, task: TaskSpec | None) -> str | None:
    """A proposed dataset as the table shows it."""
    return held.name(task.data.path) if task and task.data else None


def metric_name(task: TaskSpec | None, usual: Metric) -> str:
    """A proposed metric as the table shows it."""
    return task.metric.name if task and task.metric else usual.name


def untouched(
    held: Contents, family: str, architecture: str, pretrained: str | None, rows: Sequence[dict[str, Any]]
) -> bool:
    """Whether all is as it was proposed."""
    proposal = held.proposal
    guess = held.name(proposal.pretrained) if proposal.pretrained else None
    if (family, architecture, pretrained) != (proposal.family, proposal.architecture, guess):
        return False
    tasks = {task.name: task for task in proposal.tasks}
    return all((row["data"] or None) == data_name(held, tasks.get(row["task"])) for row in rows)


def spec_of(
    held: Contents, family: str, architecture: str, pretrained: str | None, rows: Sequence[dict[str, Any]]
) -> StudySpec:
    """The study that the form says.

    Raises:
        MapMergeError: Something is missing or can't be used.
    """
    if not family:
        raise StudyError("Say which family of models these are.")
    if not pretrained:
        raise StudyError("Say which model the others were fine-tuned from.")
    return StudySpec(
        family=family,
        architecture=architecture,
        pretrained=parse_source(held.path(pretrained)),
        tasks=tuple(task_of(held, row, family_info(family)) for row in rows),
        options=held.proposal.options,
    )


def task_of(held: Contents, row: dict[str, Any], info: FamilyInfo) -> TaskSpec:
    """A row's task; what was proposed of its dataset stays, unless another one is chosen."""
    known = {held.name(task.checkpoint): task for task in held.proposal.tasks}.get(row["checkpoint"])
    data = known.data if known and known.data and data_name(held, known) == row["data"] else None
    if data is None and row["data"]:
        data = DataSource(path=held.path(row["data"]))
    metric = known.metric if known and known.metric and known.metric.name == row["metric"] else None
    if metric is None:
        metric = METRICS.get(row["metric"], info.metric)
    task = TaskSpec(row["task"] or "", parse_source(held.path(row["checkpoint"])), data, metric)
    return task if metric != info.metric else replace(task, metric=None)
