"""The chosen model as a file, with its recipe, its card and its checksum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.parts import live, pictures, shell, state
from pages.parts.words import size

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.rows import PickRow


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Export", "The merged model as one file, with everything needed to trust and load it."
    )
    picks = state.store().picks(study.id)
    if not picks:
        shell.empty(
            "No pick yet",
            "Choose a model on the front first; it can be exported from there with one click.",
            ("pages/trade_offs.py", "Go to Trade-offs", ":material/balance:"),
            study.id,
        )
        return
    pick = chosen(picks)
    left, right = st.columns([1, 1.5], gap="large")
    with left:
        with st.container(border=True, key="card_export"):
            export(pick)
        with st.container(border=True, key="card_coefficients"):
            st.subheader("Coefficients", anchor=False)
            pictures.facts(
                [(name, f"{value:.4f}") for name, value in zip(study.spec.task_names, pick.c, strict=True)]
            )
    with right:
        card(pick)


def chosen(picks: list[PickRow]) -> PickRow:
    """The pick in view, kept in the address (``?pick=5``)."""
    by_id = {pick.id: pick for pick in reversed(picks)}
    asked = st.query_params.get("pick", "")
    wanted = int(asked) if asked.isdecimal() and int(asked) in by_id else picks[-1].id
    st.session_state["pick"] = wanted

    def remember() -> None:
        st.query_params["pick"] = str(st.session_state["pick"])

    st.selectbox(
        "Model",
        list(by_id),
        key="pick",
        format_func=lambda number: describe(by_id[number]),
        on_change=remember,
        width=560,
    )
    return by_id[st.session_state["pick"]]


def describe(pick: PickRow) -> str:
    """A pick in one line."""
    how = {
        "preference": "by preference",
        "rule": f"by rule: {pick.how.get('text', '')}",
        "nearest": f"nearest to the rule: {pick.how.get('text', '')}",
        "point": "point of the front",
    }
    kind = how.get(pick.how["kind"], pick.how["kind"])
    return f"{pick.name or f'Pick {pick.id}'} ({kind})"


def export(pick: PickRow) -> None:
    """The button, the job, and then the file."""
    job = state.export_job(pick.id)
    if job is not None and job.is_live:
        live.wait_for_job(job.id, "Writing, reading back and comparing…")
        return
    exported = pick.exported if pick.exported is not None and pick.exported.is_file() else None
    if job is not None and job.status == "failed":
        st.error(shell.plain(job.error), icon=":material/error:")
    elif exported:
        file_facts(pick, exported)
    name = st.text_input("Name", pick.name, key=f"export_name_{pick.id}", placeholder="merged")
    st.caption(f"Folder: `{(exported.parent if exported else state.store().folder / 'exports')}`")
    label = "Export again" if exported else "Export"
    if st.button(label, key="export", type="secondary" if exported else "primary", icon=":material/save:"):
        with shell.errors_shown():
            state.store().update_pick(pick.id, name=name.strip())
            state.export(pick.id)
            st.rerun()


def file_facts(pick: PickRow, path: Path) -> None:
    """Where the file is, how large, its checksum, and a link to download it."""
    st.success("Exported, read back and compared.", icon=":material/check_circle:")
    pictures.facts([("File", path.name), ("Size", size(path.stat().st_size))])
    st.caption("Path")
    st.code(str(path), language=None, wrap_lines=True)
    st.caption("SHA-256")
    st.code(state.checksum(path, path.stat().st_mtime_ns), language=None, wrap_lines=True)
    st.link_button(
        "Download",
        f"/download/{pick.id}",
        key="download",
        type="primary",
        icon=":material/download:",
        width="stretch",
    )


def card(pick: PickRow) -> None:
    """The model card beside the file."""
    path = pick.exported.with_suffix(".README.md") if pick.exported else None
    if path is None or not path.is_file():
        shell.empty(
            "Not exported yet", "Press **Export**: the model card and the lines that load it appear here."
        )
        return
    text = path.read_text(encoding="utf-8")
    with st.container(border=True, key="card_model"):
        # The first block between dashes is for model hubs.
        st.markdown(text.split("---\n", 2)[-1])


draw()
