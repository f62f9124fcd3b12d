"""What a nested run did: its tree with each pair's front, and the model that it leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.nested import tree_figure, tree_info
from mapmerge_core.charts.units import value_text
from mapmerge_core.errors import MapMergeError
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.store.rows import RunRow, StudyRow


def draw(study: StudyRow, run: RunRow) -> None:
    """The tree of a nested run that is done, and the ways on from its model."""
    try:
        tree = state.nested_tree(run.id)
    except MapMergeError as error:
        shell.show_error(error)
        return
    tasks, metrics = study.spec.task_names, study.spec.metrics
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("The model that nested MAP leads to", anchor=False, width="stretch")
        if st.button("Compare", key="nested_compare", icon=":material/leaderboard:"):
            shell.go("pages/compare.py", study.id)
        if st.button("Export this model", key="nested_export", icon=":material/download:"):
            with shell.errors_shown():
                made = choosing.Choice("compared", tree.c, {"kind": "compared", "name": "Nested MAP"})
                pick = choosing.kept(study.id, made, name="Nested MAP")
                state.export("pick", pick.id)
                shell.go("pages/export.py", study.id, pick=str(pick.id))
    pictures.tiles(
        [
            pictures.Tile(tasks[task], value_text(value, metrics[task]), notes=(f"coefficient {tree.c[task]:.3f}",))
            for task, value in zip(tree.tasks, tree.predicted, strict=True)
        ],
        "pick",
    )
    st.caption(f"Predicted by the last pair's surrogates. {shell.plain(tree.message)}")
    st.subheader("Pairs and their fronts", anchor=False)
    st.plotly_chart(
        tree_figure(tree_info(tree, tasks, metrics), shell.palette()),
        key="nested_chart",
        theme=None,
        config=shell.PLOT,
    )
    st.caption(
        "Two models become one in each panel; an axis is the average over a node's tasks, weighed as you "
        "weighed them. R² is the worst of a pair's surrogates, leave-one-out."
    )
