"""The chosen model as a file, with its recipe, its card and its checksum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import ExportError
from pages.parts.export import files
from pages.parts.shared import live, pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.jobs.job import JobSnapshot
    from mapmerge_core.studies.store import Pick

HOW = {
    "preference": "by preference",
    "rule": "by rule: {text}",
    "nearest": "nearest to the rule: {text}",
    "point": "point of the front",
    "compared": "from Compare: {name}",
    "unlabelled": "for unlabelled data: {data}",
}


def draw() -> None:
    """Draw the page."""
    study = shell.study_heading(
        "Export", "The merged model as a file or a folder, with everything needed to trust and load it."
    )
    picks = state.store().picks.all(study.id)[::-1]
    if not picks:
        shell.empty(
            "No pick yet",
            "Choose a model on the front first; it can be exported from there with one click.",
            ("pages/trade_offs.py", "Go to Trade-offs", ":material/balance:"),
            study.id,
        )
        return
    pick = chosen(picks)
    # The job first: one that ends in between has left its file by then.
    job = state.export_job(pick.id)
    file = exported(pick)
    left, right = st.columns([1, 1.5], gap="large")
    with left:
        with st.container(border=True, key="card_export"):
            export(pick, job, file)
        with st.container(border=True, key="card_point"):
            merge = state.store().merges.get(pick.merge_id)
            st.subheader("Made with", anchor=False)
            pictures.facts([("Merge", merge.title)])
            pictures.facts([(name, f"{value:.4f}") for name, value in zip(merge.space.names, pick.x, strict=True)])
    with right:
        files.card(file)


def exported(pick: Pick) -> Path | None:
    """Return the pick's file, where there is one."""
    try:
        return state.exported_file(pick.id)
    except ExportError:
        return None


def chosen(picks: list[Pick]) -> Pick:
    """Return the pick in view, kept in the address (``?pick=5``)."""
    by_id = {str(pick.id): pick for pick in picks}
    asked = st.query_params.get("pick", "")
    st.session_state["pick"] = asked if asked in by_id else str(picks[0].id)

    def remember() -> None:
        st.query_params["pick"] = st.session_state["pick"]

    st.selectbox(
        "Model",
        list(by_id),
        key="pick",
        format_func=lambda number: describe(by_id[number]),
        on_change=remember,
        width=560,
    )
    return by_id[st.session_state["pick"]]


def describe(pick: Pick) -> str:
    """Return a pick in one line: "Pick 3 (by rule: maximize worst)"."""
    how = {"text": "", "name": "", "data": ""} | dict(pick.how)
    kind = HOW[how["kind"]].format_map(how)
    return f"{pick.name or f'Pick {pick.id}'} ({kind})"


def export(pick: Pick, job: JobSnapshot | None, file: Path | None) -> None:
    """Draw the button, the job, and then the file."""
    if job is not None and job.is_live:
        live.wait_for_job(job.id, "Writing, reading back and comparing…")
        return
    if job is not None and job.status == "failed":
        st.error(shell.plain(job.error or ""), icon=":material/error:")
    elif file:
        files.draw(pick.id, file)
    name = st.text_input("Name", pick.name, key=f"export_name_{pick.id}", placeholder="merged")
    notes = st.text_area("Notes", pick.notes, key=f"export_notes_{pick.id}", height=68)
    st.caption(f"Folder: `{(file.parent if file else state.store().folder / 'exports')}`")
    if (name.strip(), notes.strip()) != (pick.name, pick.notes):
        state.store().picks.update(pick.id, name=name.strip(), notes=notes.strip())
    label = "Export again" if file else "Export"
    if st.button(label, key="export", type="secondary" if file else "primary", icon=":material/save:"):
        with shell.errors_shown():
            state.export(pick.id)
            st.rerun()


with shell.errors_shown():
    draw()
