"""What a run that led to a single model did, if it kept a tree: each pair's front, and the model at its root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.tree import tree_figure, tree_info
from mapmerge_core.charts.units import point_text, value_text
from mapmerge_core.errors import MapMergeError
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Study


def draw(study: Study, run: Run) -> None:
    """Draw the model that a finished run leads to, its tree if the method has one, and the ways on."""
    try:
        result = state.run_result(run.id)
    except MapMergeError as error:
        shell.show_error(error)
        return
    method, chosen, objectives = result.method, result.choice, study.config.objectives
    if chosen is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"The model that {method.title} leads to", anchor=False, width="stretch")
        if st.button("Compare", key="chosen_compare", icon=":material/leaderboard:"):
            shell.go("pages/compare.py", study.id)
        if st.button("Export this model", key="chosen_export", icon=":material/download:"):
            with shell.errors_shown():
                how = {"kind": "compared", "name": method.title}
                pick = choosing.kept(choosing.Choice("compared", run.merge_id, chosen.x, how), name=method.title)
                state.export(pick.id)
                shell.go("pages/export.py", study.id, pick=str(pick.id))
    pictures.tiles(
        [
            pictures.Tile(objective.name, value_text(value, objective.metric))
            for objective, value in zip(objectives, chosen.values, strict=True)
        ],
        "pick",
    )
    st.caption(shell.plain(f"{point_text(method.space.names, chosen.x)}. {chosen.message}"))
    tree = getattr(method, "tree", None)
    if tree is None:
        return
    own: dict[int, int] = {}
    for column, objective in enumerate(method.objectives):
        if objective.model is not None:
            own.setdefault(objective.model, column)
    leaves = [objectives[own[model]] for model in sorted(own)]
    st.subheader("Pairs and their fronts", anchor=False)
    st.plotly_chart(
        tree_figure(tree_info(tree, [leaf.name for leaf in leaves], [leaf.metric for leaf in leaves]), shell.palette()),
        key="tree_chart",
        theme=None,
        config=shell.PLOT,
    )
    st.caption(
        "Two models become one in each panel; an axis is the average over a node's tasks, weighed as you "
        "weighed them. R² is the worst of a pair's surrogates, leave-one-out."
    )
