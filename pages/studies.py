"""Home: the demos, and every study there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.config.demo import demo_study
from pages.parts.shared import pictures, shell, state
from pages.parts.shared.words import STATUS, ago
from pages.parts.studies import demos

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Study


def draw() -> None:
    """Draw the page."""
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
    """Draw one card for each demo; one click creates its study, starts it and goes to watch it."""
    try:
        offered = demos.find()
    except MapMergeError as error:
        st.info(f"The demos are not available: {shell.plain(str(error))}", icon=":material/info:")
        return
    if not offered:
        return
    st.subheader("Try a demo", anchor=False)
    columns = st.columns(len(offered), gap="medium")
    for number, (column, demo) in enumerate(zip(columns, offered, strict=True)):
        with column, st.container(border=True, key=f"card_{demo.card.key}", height="stretch"):
            demo_card(demo, is_first=number == 0)


def demo_card(demo: demos.Demo, *, is_first: bool) -> None:
    """Draw one demo."""
    card = demo.card
    st.subheader(card.title, anchor=False)
    st.caption(card.lead)
    pictures.strip(demo.images, "even")
    st.caption(shell.plain(" · ".join(demo.tasks)))
    pictures.facts(
        [
            ("Models merged", str(card.n_models)),
            ("Points evaluated", str(card.points)),
            ("On two CPU cores", card.expected),
        ]
    )
    st.space("stretch")
    if st.button(
        "Run this demo",
        key=f"demo_{card.key}",
        type="primary" if is_first else "secondary",
        icon=":material/play_arrow:",
        width="stretch",
    ):
        with shell.errors_shown():
            study = demo_study(demo.tasks, points=card.points, zoo=state.zoo())
            created = state.store().studies.create(study.name, study.config)
            state.jobs().start_run(state.store().runs.create(created.id, study.run).id)
            shell.go("pages/evaluate.py", created.id)


def studies() -> None:
    """Draw the studies, the one that changed last first."""
    state.store().runs.recover()
    rows = state.store().studies.all()
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


def study_card(row: Study) -> None:
    """Draw one study in the list."""
    with st.container(border=True, key=f"card_study_{row.id}"):
        name, facts, buttons = st.columns([3.2, 4, 2], vertical_alignment="center")
        with name, st.container(gap=None):
            st.markdown(f"**{shell.plain(row.name)}**")
            st.caption(shell.plain(", ".join(task.name for task in row.config.tasks)))
        with facts:
            label, icon, colour = STATUS[row.status]
            with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
                st.badge(label, icon=icon, color=colour)
                pictures.facts(
                    [
                        ("Models", str(len(row.config.models))),
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
                "", key=f"delete_{row.id}", icon=":material/delete:", help="Delete this study", type="tertiary"
            ):
                confirm_deletion(row)


def fit_text(row: Study) -> str:
    """Return the mean leave-one-out R² of the study's surrogates, or a dash while there are too few points."""
    quality = state.mean_r2(row.id)
    return "–" if quality is None else f"{quality:.2f}"


@st.dialog("Delete this study?", icon=":material/delete:")
def confirm_deletion(row: Study) -> None:
    """Ask before a study and its evaluations are gone."""
    st.markdown(
        f"**{shell.plain(row.name)}** has {row.n_points} measured points and {row.n_picks} picks. "
        "They will be gone for good. Exported files stay."
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it", key="delete_cancel"):
            st.rerun()
        if st.button(
            "Delete", key="delete_confirm", type="primary", icon=":material/delete:", on_click=delete, args=(row.id,)
        ):
            st.rerun()


def delete(study_id: int) -> None:
    """Delete a study; where that can't be, the page says why."""
    try:
        state.store().studies.delete(study_id)
    except MapMergeError as error:
        st.session_state["deletion_problem"] = error


with shell.errors_shown():
    draw()
