"""Home: the demos, and every study there is."""

from __future__ import annotations

import streamlit as st

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.config.manifest import demo_settings
from pages.parts.shared import pictures, shell, state
from pages.parts.shared.words import STATUS, ago
from pages.parts.studies import demos


def draw() -> None:
    """The page."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        shell.heading(
            "Merge fine-tuned models with every trade-off in view",
            "Evaluate a few merges, see the front that they span, pick the model that suits you, export it.",
        )
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("New study", key="new_study", icon=":material/add:"):
            st.switch_page("pages/models.py")
    demo_cards()
    st.space("small")
    studies()


def demo_cards() -> None:
    """One card for each demo; one click creates its study, starts it and goes to watch it."""
    try:
        found = demos.find()
    except MapMergeError as error:
        st.info(f"The demos are not available: {shell.plain(str(error))}", icon=":material/info:")
        return
    st.subheader("Try a demo", anchor=False)
    columns = st.columns(len(demos.DEMOS), gap="medium")
    for column, (count, title, lead) in zip(columns, demos.DEMOS, strict=True):
        if count not in found:
            continue
        settings = demo_settings(count)
        with column, st.container(border=True, key=f"card_{count}", height="stretch"):
            st.subheader(title, anchor=False)
            st.caption(lead)
            pictures.strip(found[count].images, "even")
            st.caption(shell.plain(" · ".join(found[count].tasks)))
            pictures.facts(
                [
                    ("Models merged", str(count)),
                    ("Points evaluated", str(settings.points)),
                    ("On two CPU cores", EXPECTED[count]),
                ]
            )
            st.space("stretch")
            kind = "primary" if count == 2 else "secondary"
            if st.button(
                "Run this demo", key=f"demo_{count}", type=kind, icon=":material/play_arrow:", width="stretch"
            ):
                with shell.errors_shown():
                    start_demo(count)


EXPECTED = {2: "20 seconds", 4: "1 minute", 8: "3 minutes"}
"""On two cores, measured."""


def start_demo(count: int) -> None:
    """Create the demo's study, start its run and go to Evaluate."""
    # It takes a second to import, which the first page needn't wait for.
    from mapmerge_core.studies.config.demo import create_demo_study  # noqa: PLC0415

    run = create_demo_study(state.store(), count, zoo=state.zoo())
    state.jobs().start_run(run.id)
    shell.go("pages/evaluate.py", run.study_id)


def studies() -> None:
    """The studies, the one that changed last first."""
    state.store().recover()
    rows = state.store().studies()
    st.subheader("Studies", anchor=False)
    if not rows:
        shell.empty(
            "Nothing here yet",
            "Run a demo above with one click, or bring your own pre-trained and fine-tuned models.",
            ("pages/models.py", "Start from my models", ":material/layers:"),
        )
        return
    if "deletion_problem" in st.session_state:
        shell.show_error(st.session_state.pop("deletion_problem"))
    for row in rows:
        study_card(row)


def study_card(row: state.StudyRow) -> None:
    """One study in the list."""
    with st.container(border=True, key=f"card_study_{row.id}"):
        name, facts, buttons = st.columns([3.2, 4, 2], vertical_alignment="center")
        with name, st.container(gap=None):
            st.markdown(f"**{shell.plain(row.name)}**")
            st.caption(shell.plain(", ".join(row.spec.task_names)))
        with facts:
            label, icon, colour = STATUS[row.status]
            with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
                st.badge(label, icon=icon, color=colour)
                pictures.facts(
                    [
                        ("Tasks", str(len(row.spec.tasks))),
                        ("Points", str(row.n_points)),
                        ("Fit R²", fit_text(row)),
                        ("Changed", ago(row.changed)),
                    ]
                )
        with buttons, st.container(horizontal=True, horizontal_alignment="right"):
            if st.button("Open", key=f"open_{row.id}", icon=":material/arrow_forward:"):
                page = "pages/trade_offs.py" if row.status == "done" else "pages/evaluate.py"
                shell.go(page, row.id)
            if st.button(
                "",
                key=f"delete_{row.id}",
                icon=":material/delete:",
                help="Delete this study",
                type="tertiary",
            ):
                confirm_deletion(row)


def fit_text(row: state.StudyRow) -> str:
    """The mean leave-one-out R² of the study's surrogates, or a dash while there are too few points."""
    quality = state.mean_r2(row.id)
    return "–" if quality is None else f"{quality:.2f}"


@st.dialog("Delete this study?", icon=":material/delete:")
def confirm_deletion(row: state.StudyRow) -> None:
    """Ask before a study and its evaluations are gone."""
    st.markdown(
        f"**{shell.plain(row.name)}** has {row.n_points} measured points and {row.n_picks} picks. "
        "They will be gone for good. Exported files stay."
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it", key="delete_cancel"):
            st.rerun()
        if st.button(
            "Delete",
            key="delete_confirm",
            type="primary",
            icon=":material/delete:",
            on_click=delete,
            args=(row.id,),
        ):
            st.rerun()


def delete(study_id: int) -> None:
    """Delete a study; where that can't be, the page says why."""
    try:
        state.store().delete_study(study_id)
    except MapMergeError as error:
        st.session_state["deletion_problem"] = error


draw()
