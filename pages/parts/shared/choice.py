"""The model that one visitor has chosen on a study, and how; kept in their session only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from mapmerge_core.charts.bars import PickInfo
from mapmerge_core.charts.fronts import Spot
from mapmerge_core.charts.units import point_text
from mapmerge_core.studies.store.rows import point_key
from pages.parts.shared import shell, state

if TYPE_CHECKING:
    from mapmerge_core.search.preferences import Scalarisation
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis
    from mapmerge_core.studies.store import Pick

HOW_BADGES = {
    "preference": ("By preference", ":material/tune:"),
    "rule": ("By rule", ":material/rule:"),
    "nearest": ("Nearest to the rule", ":material/rule:"),
    "point": ("Point of the front", ":material/ads_click:"),
    "shortlist": ("From the shortlist", ":material/bookmark:"),
    "compared": ("From Compare", ":material/leaderboard:"),
    "unlabelled": ("For unlabelled data", ":material/image_search:"),
}

NO_PREFERENCE: Mapping[str, Any] = {
    "kind": "preference",
    "weights": {},
    "scalarisation": "weighted_sum",
    "normalise": False,
}


@dataclass(frozen=True, eq=False)
class Choice:
    """A model.

    Attributes:
        kind: The kind of choice, see HOW_BADGES.
        merge_id: The merge.
        x: Its point (D,).
        how: How it was chosen, as a Pick keeps it.
    """

    kind: str
    merge_id: int
    x: np.ndarray
    how: Mapping[str, Any]

    @property
    def key(self) -> tuple[int, bytes]:
        """What all choices and picks of this model share."""
        return point_key(self.merge_id, self.x)


def remember(study_id: int, choice: Choice) -> None:
    """Make ``choice`` the visitor's pick on the study."""
    st.session_state[f"choice_{study_id}"] = choice


def recall(study_id: int, view: StudyAnalysis, analysis: StudyAnalysis) -> Choice:
    """Return the visitor's pick on the study; at first the one of their preference, which is even at first.

    Args:
        study_id: The study.
        view: The merges in view, among which a preference chooses.
        analysis: All of the study's merges.
    """
    choice: Choice | None = st.session_state.get(f"choice_{study_id}")
    if choice is not None and choice.kind == "preference":
        # More points may have been measured since: the preference stays, the front moves.
        return by_preference(view, choice.how)
    if choice is not None and is_predictable(analysis, choice.merge_id):
        return choice
    kept = preference(study_id)
    weights = kept["weights"] if any(kept["weights"].values()) else dict.fromkeys(view.names, 1.0)
    return by_preference(view, {**kept, "weights": weights})


def is_predictable(analysis: StudyAnalysis, merge_id: int) -> bool:
    """Return whether a merge's models have a place among the trade-offs."""
    return any(merge.merge.id == merge_id and merge.problem is None for merge in analysis.merges)


def preference(study_id: int) -> Mapping[str, Any]:
    """Return the study's preference as the visitor last set it, also where another choice came after it."""
    kept: Mapping[str, Any] = st.session_state.get(f"preference_{study_id}", NO_PREFERENCE)
    return kept


def keep_preference(
    study_id: int, weights: Mapping[str, float], scalarisation: Scalarisation, *, normalise: bool
) -> Mapping[str, Any]:
    """Keep what the sliders say: they are forgotten where they aren't drawn."""
    kept = {**NO_PREFERENCE, "weights": weights, "scalarisation": scalarisation, "normalise": normalise}
    st.session_state[f"preference_{study_id}"] = kept
    return kept


def change_weights(study_id: int, weights: Mapping[str, float]) -> None:
    """Weigh the objectives anew from another page than Trade-offs; a pick by preference follows them."""
    before = preference(study_id)
    keep_preference(study_id, weights, before["scalarisation"], normalise=before["normalise"])
    choice = st.session_state.get(f"choice_{study_id}")
    if choice is not None and choice.kind == "preference":
        del st.session_state[f"choice_{study_id}"]


def by_preference(view: StudyAnalysis, how: Mapping[str, Any]) -> Choice:
    """Return the front's model that suits a preference best.

    Raises:
        SearchError: All weights are zero, or fine-tuned models are needed and weren't measured.
    """
    row = view.by_preference(how["weights"], scalarisation=how["scalarisation"], normalise=how["normalise"])
    return at_row(view, row, how)


def at_row(view: StudyAnalysis, row: int, how: Mapping[str, Any]) -> Choice:
    """Return the model in a row of the front."""
    front = view.fitted_front
    return Choice(how["kind"], front.keys[row], front.x[row], how)


def kept(choice: Choice, *, name: str = "", shortlisted: bool = False) -> Pick:
    """Return the store's pick of a model, made now if there is none."""
    picks = state.store().picks
    pick = picks.find(choice.merge_id, choice.x)
    if pick is None:
        return picks.add(choice.merge_id, choice.x, choice.how, name=name, shortlisted=shortlisted)
    return picks.update(pick.id, name=name or pick.name, shortlisted=True) if shortlisted else pick


def export(study_id: int, choice: Choice, *, name: str = "") -> None:
    """Start to write a model, and go to watch it."""
    pick = kept(choice, name=name)
    state.export(pick.id)
    shell.go("pages/export.py", study_id, pick=str(pick.id))


def pick_info(analysis: StudyAnalysis, choice: Choice) -> PickInfo:
    """Return what the pick's card and bars show."""
    predicted, lower, upper = analysis.predict(choice.merge_id, choice.x)
    values = state.store().evaluations.measured(choice.merge_id, choice.x, "test")
    measured = np.array([values.get(objective.key, np.nan) for objective in analysis.objectives])
    return PickInfo(
        objectives=analysis.names,
        metrics=tuple(objective.metric for objective in analysis.objectives),
        pretrained=analysis.pretrained,
        single=analysis.single,
        predicted=predicted,
        lower=lower,
        upper=upper,
        measured=measured if values else None,
    )


def shortlist(study_id: int, analysis: StudyAnalysis) -> list[tuple[Pick, np.ndarray]]:
    """Return the study's shortlisted picks, oldest first, each with its predicted values (K,)."""
    picks = [pick for pick in state.store().picks.all(study_id) if pick.shortlisted]
    return [
        (pick, analysis.predict(pick.merge_id, pick.x)[0]) for pick in picks if is_predictable(analysis, pick.merge_id)
    ]


def spots(
    analysis: StudyAnalysis, choice: Choice, info: PickInfo, shortlisted: Sequence[tuple[Pick, np.ndarray]]
) -> list[Spot]:
    """Return the models drawn beside the front: references, shortlist, the pick and its measurement."""
    references = analysis.references
    drawn = [
        Spot("single" if number else "pretrained", label, values)
        for number, (label, values) in enumerate(zip(references.names, references.Y, strict=True))
        if np.isfinite(values).all()
    ]
    for pick, values in shortlisted:
        if pick.key != choice.key:
            where = point_text(analysis.merge(pick.merge_id).space.names, pick.x)
            drawn.append(Spot("shortlist", pick.name or f"Pick {pick.id}", values, where))
    where = point_text(analysis.merge(choice.merge_id).space.names, choice.x)
    drawn.append(Spot("pick", "Your pick", info.predicted, where, info.lower, info.upper))
    if info.measured is not None and np.isfinite(info.measured).all():
        drawn.append(Spot("measured", "Your pick, measured on the test split", info.measured, where))
    return drawn
