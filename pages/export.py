"""The chosen model as a file, with its recipe, its card and its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import streamlit as st
from mapmerge_core.studies.runs.baselines import label

from mapmerge_core.studies.runs.exporting import exported_baseline
from pages.parts.shared import exported as exports
from pages.parts.shared import live, pictures, shell, state
from pages.parts.shared.words import share, size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mapmerge_core.studies.store.rows import BaselineRow, LearnedPickRow, PickRow

ADDRESSES: dict[state.ExportKind, str] = {"pick": "pick", "baseline": "baseline", "learned": "learned_pick"}
"""What the address calls a model's number."""
DOWNLOADS: dict[state.ExportKind, str] = {"pick": "", "baseline": "baseline/", "learned": "learned/"}
"""Where under /download its files are."""
PLACEHOLDERS: dict[state.ExportKind, str] = {"pick": "merged", "learned": "preference"}
"""What a file is called whose model has no name."""
FACTS: dict[state.ExportKind, str] = {
    "pick": "Coefficients",
    "baseline": "Made with",
    "learned": "Preference",
}
"""What its facts are."""


@dataclass(frozen=True)
class Model:
    """A model that can be exported: a pick, a baseline or a learned set's pick.

    Attributes:
        kind: Which of the three.
        id: Its number in the store.
        title: It in one line.
        name: What the person called it; "" for a baseline.
        facts: What it is made of, as (label, value).
    """

    kind: state.ExportKind
    id: int
    title: str
    name: str
    facts: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.kind}-{self.id}"


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Export", "The merged model as a file or a folder, with everything needed to trust and load it."
    )
    tasks = study.spec.task_names
    models = [of_pick(pick, tasks) for pick in reversed(state.store().picks(study.id))]
    models += [of_learned(pick, tasks) for pick in reversed(state.store().learned_picks(study.id))]
    models += [of_baseline(baseline, tasks) for baseline in state.store().baselines(study.id)]
    if not models:
        shell.empty(
            "No pick yet",
            "Choose a model on the front first; it can be exported from there with one click.",
            ("pages/trade_offs.py", "Go to Trade-offs", ":material/balance:"),
            study.id,
        )
        return
    model = chosen(models)
    # The job first: one that ends in between has left its file by then.
    job = state.export_job(model.kind, model.id)
    file = exported(model)
    left, right = st.columns([1, 1.5], gap="large")
    with left:
        with st.container(border=True, key="card_export"):
            export(model, job, file)
        if model.facts:
            with st.container(border=True, key="card_coefficients"):
                st.subheader(FACTS[model.kind], anchor=False)
                pictures.facts(model.facts)
    with right:
        card(file)


def of_pick(pick: PickRow, tasks: Sequence[str]) -> Model:
    """A pick as a model that can be exported."""
    facts = tuple((name, f"{value:.4f}") for name, value in zip(tasks, pick.c, strict=True))
    return Model("pick", pick.id, describe(pick), pick.name, facts)


def of_learned(pick: LearnedPickRow, tasks: Sequence[str]) -> Model:
    """A learned set's pick as a model that can be exported."""
    facts = [(name, share(part)) for name, part in zip(tasks, pick.gamma, strict=True)]
    title = f"{describe(pick)} of the set of run {pick.run_id}"
    return Model("learned", pick.id, title, pick.name, tuple(facts))


def of_baseline(baseline: BaselineRow, tasks: Sequence[str]) -> Model:
    """A baseline as a model that can be exported: with its settings or, without any, its coefficients."""
    facts = [
        (name.replace("_", " ").capitalize(), "all" if value is None else f"{value:g}")
        for name, value in baseline.settings.items()
    ]
    if baseline.c is not None:
        facts += [(name, f"{value:.4f}") for name, value in zip(tasks, baseline.c, strict=True)]
    return Model("baseline", baseline.id, f"{label(baseline)} (baseline)", "", tuple(facts))


def exported(model: Model) -> Path | None:
    """The model's file, where there is one."""
    if model.kind == "baseline":
        return exported_baseline(state.store(), model.id)
    store = state.store()
    path = (store.pick if model.kind == "pick" else store.learned_pick)(model.id).exported
    return path if path is not None and path.is_file() else None


def chosen(models: list[Model]) -> Model:
    """The model in view, kept in the address (``?pick=5``, ``?baseline=3``, ``?learned_pick=2``)."""
    by_key = {model.key: model for model in models}
    asked = [f"{kind}-{st.query_params[name]}" for kind, name in ADDRESSES.items() if name in st.query_params]
    st.session_state["pick"] = next((key for key in asked if key in by_key), models[0].key)

    def remember() -> None:
        model = by_key[st.session_state["pick"]]
        for name in ADDRESSES.values():
            st.query_params.pop(name, None)
        st.query_params[ADDRESSES[model.kind]] = str(model.id)

    st.selectbox(
        "Model",
        list(by_key),
        key="pick",
        format_func=lambda key: by_key[key].title,
        on_change=remember,
        width=560,
    )
    return by_key[st.session_state["pick"]]


def describe(pick: PickRow | LearnedPickRow) -> str:
    """A pick in one line."""
    how = {
        "preference": "by preference",
        "rule": f"by rule: {pick.how.get('text', '')}",
        "nearest": f"nearest to the rule: {pick.how.get('text', '')}",
        "point": "point of the front",
        "compared": f"from Compare: {pick.how.get('name', '')}",
        "unlabelled": f"for unlabelled data: {pick.how.get('data', '')}",
    }
    kind = how.get(pick.how["kind"], pick.how["kind"])
    return f"{pick.name or f'Pick {pick.id}'} ({kind})"


def export(model: Model, job: state.JobSnapshot | None, file: Path | None) -> None:
    """The button, the job, and then the file."""
    if job is not None and job.is_live:
        live.wait_for_job(job.id, "Writing, reading back and comparing…")
        return
    if job is not None and job.status == "failed":
        st.error(shell.plain(job.error), icon=":material/error:")
    elif file:
        file_facts(model, file)
    name = ""
    if model.kind != "baseline":
        name = st.text_input("Name", model.name, key=f"export_name_{model.key}", placeholder=PLACEHOLDERS[model.kind])
    st.caption(f"Folder: `{(file.parent if file else state.store().folder / 'exports')}`")
    label_ = "Export again" if file else "Export"
    kind = "secondary" if file else "primary"
    if st.button(label_, key="export", type=kind, icon=":material/save:"):
        with shell.errors_shown():
            if model.kind == "pick":
                state.store().update_pick(model.id, name=name.strip())
            elif model.kind == "learned":
                state.store().update_learned_pick(model.id, name=name.strip())
            state.export(model.kind, model.id)
            st.rerun()


def file_facts(model: Model, path: Path) -> None:
    """Where the file is, how large, its checksum, and a link to download it."""
    st.success("Exported, read back and compared.", icon=":material/check_circle:")
    is_folder = path.name == exports.IN_FOLDER
    pictures.facts([("Folder" if is_folder else "File", exports.title(path)), ("Size", size(path.stat().st_size))])
    st.caption("Path")
    st.code(str(path), language=None, wrap_lines=True)
    st.caption(f"SHA-256 of {exports.IN_FOLDER}" if is_folder else "SHA-256")
    st.code(state.checksum(path, path.stat().st_mtime_ns), language=None, wrap_lines=True)
    address = f"/download/{DOWNLOADS[model.kind]}{model.id}"
    st.link_button(
        f"Download {path.name}" if is_folder else "Download",
        address,
        key="download",
        type="primary",
        icon=":material/download:",
        width="stretch",
    )
    others = exports.beside(path)
    if others:
        title = "Its other files, which loading needs" if is_folder else "Files beside it"
        with st.expander(title, icon=":material/folder:"):
            for found in others:
                st.link_button(
                    f"{shell.plain(found.name)} ({size(found.stat().st_size)})",
                    f"{address}/{quote(found.name)}",
                    type="tertiary",
                    icon=":material/download:",
                )


def card(file: Path | None) -> None:
    """The model card beside the file."""
    path = exports.card(file) if file else None
    if path is None or not path.is_file():
        shell.empty("Not exported yet", "Press **Export**: the model card and the lines that load it appear here.")
        return
    text = path.read_text(encoding="utf-8")
    with st.container(border=True, key="card_model"):
        # The first block between dashes is for model hubs.
        st.markdown(text.split("---\n", 2)[-1])


draw()
