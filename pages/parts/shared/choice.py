"""The coefficients that one visitor has chosen on one study, and how; kept in their session only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from mapmerge_core.charts.models import BarsInfo
from mapmerge_core.charts.trade_offs import Spot
from pages.parts.shared import state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.search.preferences import Scalarisation
    from mapmerge_core.studies.analysis.analysis import Analysis, Anchor
    from mapmerge_core.studies.store.rows import PickRow

HOW_BADGES = {
    "preference": ("By preference", ":material/tune:"),
    "rule": ("By rule", ":material/rule:"),
    "nearest": ("Nearest to the rule", ":material/rule:"),
    "point": ("Point of the front", ":material/ads_click:"),
    "shortlist": ("From the shortlist", ":material/bookmark:"),
    "compared": ("From Compare", ":material/leaderboard:"),
    "unlabelled": ("For unlabelled data", ":material/image_search:"),
}

NO_PREFERENCE = {"kind": "preference", "weights": {}, "scalarisation": "weighted_sum", "normalise": False}


@dataclass(frozen=True, eq=False)
class Choice:
    """Coefficients ``c`` (N,), the ``kind`` of choice (see HOW_BADGES), and ``how`` as a PickRow keeps it."""

    kind: str
    c: np.ndarray
    how: Mapping[str, Any]


def remember(study_id: int, choice: Choice) -> None:
    """Make ``choice`` the visitor's pick on the study."""
    st.session_state[f"choice_{study_id}"] = choice


def recall(study_id: int, analysis: Analysis) -> Choice:
    """The visitor's pick on the study; at first the one of their preference, which is equal at first."""
    choice = st.session_state.get(f"choice_{study_id}")
    if choice is None or len(choice.c) != len(analysis.tasks):
        kept = preference(study_id)
        weights = kept["weights"]
        if not any(weights.values()):
            weights = dict.fromkeys(analysis.tasks, 1.0)
        return by_preference(analysis, kept | {"weights": weights})
    if choice.kind == "preference":
        # More points may have been measured since: the preference stays, the front moves.
        return by_preference(analysis, choice.how)
    return choice


def preference(study_id: int) -> Mapping[str, Any]:
    """The study's preference as the visitor last set it, also where another way of choosing came after it."""
    return st.session_state.get(f"preference_{study_id}", NO_PREFERENCE)


def keep_preference(
    study_id: int, weights: Mapping[str, float], scalarisation: Scalarisation, *, normalise: bool
) -> Mapping[str, Any]:
    """Keep what the sliders say, as a PickRow keeps it: they are forgotten where they aren't drawn."""
    kept = NO_PREFERENCE | {"weights": weights, "scalarisation": scalarisation, "normalise": normalise}
    st.session_state[f"preference_{study_id}"] = kept
    return kept


def change_weights(study_id: int, weights: Mapping[str, float]) -> None:
    """Weigh the tasks anew from another page than Trade-offs; a pick made by preference follows them."""
    before = preference(study_id)
    keep_preference(study_id, weights, before["scalarisation"], normalise=before["normalise"])
    choice = st.session_state.get(f"choice_{study_id}")
    if choice is not None and choice.kind == "preference":
        del st.session_state[f"choice_{study_id}"]


def by_preference(analysis: Analysis, how: Mapping[str, Any]) -> Choice:
    """The front's model that suits a preference best.

    Raises:
        SearchError: where all weights are zero, or single-task models are needed and were not measured.
    """
    row = analysis.by_preference(how["weights"], scalarisation=how["scalarisation"], normalise=how["normalise"])
    return Choice("preference", analysis.front.c[row], how)


def kept(study_id: int, choice: Choice, *, name: str = "", shortlisted: bool = False) -> PickRow:
    """The store's pick with these coefficients, made now if there is none."""
    store = state.store()
    for pick in store.picks(study_id):
        if np.array_equal(pick.c, choice.c):
            if shortlisted:
                return store.update_pick(pick.id, name=name or pick.name, shortlisted=True)
            return pick
    return store.add_pick(study_id, choice.c, choice.how, name=name, shortlisted=shortlisted)


def pick_info(study_id: int, analysis: Analysis, c: np.ndarray) -> BarsInfo:
    """What the pick's card and bars show of coefficients ``c``."""
    predicted, lower, upper = analysis.predict(c)
    known = state.store().measured(study_id, c, "test")
    measured = np.array([known.get(task, np.nan) for task in analysis.tasks]) if known else None
    return BarsInfo(
        tasks=analysis.tasks,
        metrics=analysis.metrics,
        pretrained=analysis.pretrained,
        single=analysis.single,
        predicted=predicted,
        lower=lower,
        upper=upper,
        measured=measured,
    )


def anchor_spots(anchors: Sequence[Anchor]) -> list[Spot]:
    """The pre-trained and the single-task models as charts show them."""
    return [
        Spot(
            anchor.kind,
            anchor.name if anchor.kind == "pretrained" else f"{anchor.name}'s model",
            anchor.c,
            anchor.values,
        )
        for anchor in anchors
    ]


def shortlist(study_id: int, analysis: Analysis) -> list[tuple[PickRow, np.ndarray]]:
    """The study's shortlisted picks, oldest first, each with its predicted metrics (K,)."""
    picks = [pick for pick in state.store().picks(study_id) if pick.shortlisted]
    if not picks:
        return []
    return list(zip(picks, analysis.values(np.stack([pick.c for pick in picks])), strict=True))


def spots(
    analysis: Analysis, choice: Choice, info: BarsInfo, shortlisted: Sequence[tuple[PickRow, np.ndarray]]
) -> list[Spot]:
    """Models drawn beside the front: pre-trained, single-task, shortlist, the pick and its measurement."""
    drawn = anchor_spots(analysis.anchors())
    for pick, values in shortlisted:
        if not np.array_equal(pick.c, choice.c):
            drawn.append(Spot("shortlist", pick.name or f"Pick {pick.id}", pick.c, values))
    drawn.append(Spot("pick", "Your pick", choice.c, info.predicted, info.lower, info.upper))
    if info.measured is not None and not np.isnan(info.measured).any():
        drawn.append(Spot("measured", "Your pick, measured on the test split", choice.c, info.measured))
    return drawn
