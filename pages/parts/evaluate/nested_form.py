"""What nested MAP needs besides a budget: how each pair's model is chosen, and which models are paired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.parts.shared import preference, shell
from pages.parts.trade_offs import rule_examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.store.rows import StudyRow

PAIRINGS = {"loss": "Closest by loss, as in the paper", "order": "In my order"}


def draw(
    study: StudyRow, before: RunSettings | None, key: Callable[[str], str], *, disabled: bool
) -> dict[str, Any]:
    """The settings that are nested MAP's own.

    Args:
        study: The study.
        before: The last run's settings, if it was nested.
        key: Makes a widget's key of its name.
        disabled: Whether nothing can be changed now.
    """
    tasks = study.spec.task_names
    chosen: dict[str, Any] = {}
    by = st.segmented_control(
        "Choose each pair's model by",
        ["Preference", "Rule"],
        default="Rule" if before and before.rule else "Preference",
        required=True,
        key=key("nested_by"),
        disabled=disabled,
        width="stretch",
    )
    if by == "Rule":
        chosen["rule"] = st.text_input(
            "Rule",
            (before.rule if before else None) or rule_examples.for_mean(tasks, study.spec.metrics),
            key=key("nested_rule"),
            disabled=disabled,
            help=f"As on Trade-offs, for example `{rule_examples.rules(tasks, study.spec.metrics)[0]}`.",
        )
    else:
        weights = preference.popover(study.id, tasks, key="nested_preference", disabled=disabled)
        chosen["weights"] = None if len(set(weights.values())) == 1 and any(weights.values()) else weights
    pairing = st.selectbox(
        "Pairs",
        list(PAIRINGS),
        1 if before and before.order else 0,
        format_func=PAIRINGS.get,
        key=key("nested_pairs"),
        disabled=disabled,
    )
    if pairing == "order":
        order = st.multiselect(
            "Order",
            list(tasks),
            list(before.order if before and before.order else tasks),
            key=key("nested_order"),
            disabled=disabled,
            help="The first two are paired, the next two, and so on; then the pairs in the same way.",
        )
        st.caption(shell.plain(pairs(order)))
        chosen["order"] = order
    return chosen


def pairs(names: list[str]) -> str:
    """Which models are merged with which: "((MNIST + Emoji) + (Letters + Flags))"."""
    nodes = list(names)
    while len(nodes) > 1:
        merged = [f"({left} + {right})" for left, right in zip(nodes[::2], nodes[1::2], strict=False)]
        nodes = merged + nodes[len(nodes) - len(nodes) % 2 :]
    return nodes[0] if nodes else ""
