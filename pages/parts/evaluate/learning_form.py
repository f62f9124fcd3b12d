"""What Pareto Merging needs besides a number of preferences: how long, from what and how it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import streamlit as st
from mapmerge_core.merges._training_settings import ScalarisationName, Training

from mapmerge_core.studies.config.manifest import demo_training, is_demo
from pages.parts.shared import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapmerge_core.studies.store.rows import StudyRow

MOST_STEPS = 1_000_000
LEARN_FROM = {False: "Unlabelled images", True: "Weights alone (data-free)"}
SCALARISATIONS: dict[ScalarisationName, str] = {
    "smooth_tchebycheff": "Smooth Tchebycheff",
    "tchebycheff": "Tchebycheff",
    "linear": "Linear",
}


def usual(study: StudyRow) -> Training:
    """How a study's first set is learned: as in the paper, or as suits the demo's models."""
    is_of_demo = is_demo(study.spec, state.zoo())
    return demo_training(len(study.spec.tasks)) if is_of_demo else Training()


def draw(before: Training, key: Callable[[str], str], *, disabled: bool) -> dict[str, Any]:
    """How long to learn and from what.

    Args:
        before: What stands in the form at first.
        key: Makes a widget's key of its name.
        disabled: Whether nothing can be changed now.
    """
    return {
        "steps": st.number_input(
            "Training steps",
            1,
            MOST_STEPS,
            min(before.steps, MOST_STEPS),
            step=100,
            key=key("steps"),
            disabled=disabled,
            help="Each step draws a preference, and images of every task; the paper takes 2,000.",
        ),
        "data_free": st.selectbox(
            "Learn from",
            list(LEARN_FROM),
            list(LEARN_FROM).index(before.data_free),
            format_func=LEARN_FROM.get,
            key=key("data_free"),
            disabled=disabled,
            help="Images are the validation split's; labels are never read. From weights alone it learns to "
            "come as near to each task's own model as the preference says: faster, and less accurate.",
        ),
    }


def further(
    before: Training, key: Callable[[str], str], *, data_free: bool, disabled: bool
) -> dict[str, Any]:
    """What seldom needs a change, as far as it matters with the other settings.

    Args:
        before: What stands in the form at first.
        key: Makes a widget's key of its name.
        data_free: Whether there are no images to learn from.
        disabled: Whether nothing can be changed now.

    Returns:
        Fields of ``Training``, which may be out of range.
    """
    chosen: dict[str, Any] = {}

    def number(name: str, label: str, text: str, *, step: float = 0.1) -> None:
        value = getattr(before, name)
        is_whole = isinstance(value, int)
        chosen[name] = st.number_input(
            label,
            value=value,
            step=1 if is_whole else step,
            format="%d" if is_whole else "%g",
            key=key(name),
            disabled=disabled,
            help=text,
        )

    number("rank", "Rank", "Of the low-rank tensors: the higher, the more parameters the set adds.")
    if not data_free:
        number("batch_size", "Images of each task in a step", "Or all of them, where there are fewer.")
    number("lr", "Learning rate", "Adam's.", step=0.001)
    options = list(get_args(ScalarisationName))
    chosen["scalarisation"] = st.selectbox(
        "Scalarisation",
        options,
        options.index(before.scalarisation),
        format_func=SCALARISATIONS.get,
        key=key("scalarisation"),
        disabled=disabled,
        help="How the tasks' objectives and the preference become the one number that is minimised: the "
        "greatest weighted objective, smoothed as in the paper or not, or the weighted sum.",
    )
    if chosen["scalarisation"] == "smooth_tchebycheff":
        number("mu", "Smoothness μ", "The smaller, the nearer to plain Tchebycheff.", step=0.05)
    number(
        "beta_cos",
        "Weight of the alignment, β_cos",
        "How much it counts that tasks with more weight reach lower objectives.",
        step=0.05,
    )
    number(
        "beta_norm",
        "Weight of the norm, β_norm",
        "The higher, the more alike are the models for different preferences.",
        step=0.05,
    )
    if not data_free:
        number(
            "balance",
            "Weight of the balance",
            "Keeps weak models from calling everything by one class, where classes are about equally "
            "frequent; 0 in the paper.",
        )
    number(
        "concentration",
        "Concentration",
        "Of the Dirichlet distribution that preferences are drawn from: 1 is uniform, below it most of the "
        "weight is more often on one task.",
    )
    number("start", "Start", "What every task vector's coefficients start from.")
    names = st.text_input(
        "Tensors to personalise",
        ", ".join(before.personalised or ()),
        key=key("personalised"),
        placeholder="The attention projections",
        disabled=disabled,
        help="Names as the checkpoint has them, between commas, with `*` for anything; empty for the "
        "attention projections of a transformer.",
    )
    chosen["personalised"] = tuple(name.strip() for name in names.split(",")) if names.strip() else None
    return chosen
