"""Which learned set is in view, and the preference that one visitor has chosen of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.analysis.learned import run_name

from mapmerge_core.charts.models import BarsInfo
from mapmerge_core.charts.trade_offs import Spot
from mapmerge_core.search.preferences import normalise
from pages.parts.shared import choice as choosing
from pages.parts.shared import preference, shell, state
from pages.parts.shared.words import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.analysis.learned import LearnedSet

    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.rows import LearnedPickRow, RunRow

FRONT = "front"


@dataclass(frozen=True, eq=False)
class LearnedChoice:
    """A preference ``gamma`` (K,), the ``kind`` of choice (see HOW_BADGES), and ``how`` it was chosen."""

    kind: str
    gamma: np.ndarray
    how: Mapping[str, Any]


def facts(learned: LearnedSet) -> list[tuple[str, str]]:
    """What learning a set took, and what it adds to a model, as (label, value) pairs."""
    count = len(learned.gammas)
    return [
        ("Learned in", duration(learned.train_seconds)),
        ("Measured", f"{count} preference{'' if count == 1 else 's'}"),
        ("Extra parameters", f"{learned.n_extra:,} ({learned.n_extra / learned.n_parameters:.2%})"),
    ]


def models_from(study: state.StudyRow) -> int | None:
    """Asks whether to choose from the surrogates' front or a learned set, if there is one.

    A set is kept in the address (``?learned=3``) and, between pages, in the session.

    Returns:
        The run that learned the set; None for the front.
    """
    titles = {str(run.id): title for run, title in titled(study.spec, state.learned_runs(study.id))}
    asked = st.query_params.get("learned")
    if asked is not None and asked not in titles and _is_same(study.id):
        st.warning(
            f"This study has no learned set {shell.plain(asked)}: its run isn't done, or was deleted.",
            icon=":material/search_off:",
        )
    st.session_state["models_from_study"] = study.id
    if not titles:
        st.query_params.pop("learned", None)
        return None
    # Fitting alone takes milliseconds, finding the front up to seconds.
    options = [*([FRONT] if state.mean_r2(study.id) is not None else []), *titles]
    kept = _kept(study.id)
    wanted = [asked, st.session_state.get(kept)]
    key = "models_from"
    st.session_state[key] = next((name for name in wanted if name in options), options[0])

    def keep() -> None:
        st.session_state[kept] = st.session_state[key]
        _to_address(st.session_state[key])

    st.segmented_control(
        "Models from",
        options,
        key=key,
        format_func=lambda name: titles.get(name, "Surrogates' front"),
        required=True,
        on_change=keep,
    )
    keep()
    found = st.session_state[key]
    return None if found == FRONT else int(found)


def show_front(study_id: int) -> None:
    """Let Trade-offs open with the surrogates' front."""
    st.session_state[_kept(study_id)] = FRONT


def _kept(study_id: int) -> str:
    return f"models_from_{study_id}"


def _is_same(study_id: int) -> bool:
    """Whether the address is about this study: it may still hold the set of one that was in view before."""
    return st.session_state.get("models_from_study", study_id) == study_id


def _to_address(name: str) -> None:
    if name == FRONT:
        st.query_params.pop("learned", None)
    else:
        st.query_params["learned"] = name


def titled(spec: StudySpec, runs: Sequence[RunRow]) -> list[tuple[RunRow, str]]:
    """Each run that learned a set with its title, which says what tells it from the others."""
    trainings = [run.settings.training or Training() for run in runs]
    differ = {name: len({getattr(training, name) for training in trainings}) > 1 for name in ("steps", "rank")}
    found = []
    for run, training in zip(runs, trainings, strict=True):
        parts = [f"{run_name(run, spec)}, run {run.id}"]
        parts += [f"{training.steps:,} steps"] if differ["steps"] else []
        parts += [f"rank {training.rank}"] if differ["rank"] else []
        found.append((run, " · ".join(parts)))
    return found


def remember(run_id: int, choice: LearnedChoice) -> None:
    """Make ``choice`` the visitor's pick of a learned set."""
    st.session_state[f"learned_choice_{run_id}"] = choice


def recall(study_id: int, learned: LearnedSet) -> LearnedChoice:
    """The visitor's pick of a learned set; at first, and where it was made so, that of their preference."""
    choice: LearnedChoice | None = st.session_state.get(f"learned_choice_{learned.run.id}")
    if choice is not None and choice.kind != "preference":
        return choice
    weights = list(preference.current(study_id, learned.tasks).values())
    if any(weights):
        return LearnedChoice("preference", normalise(weights, len(weights)), {"kind": "preference"})
    # Without a weight there is no preference: the last one stays.
    equal = np.full(len(weights), 1 / len(weights))
    return choice or LearnedChoice("preference", equal, {"kind": "preference"})


def by_weights(study_id: int, learned: LearnedSet, weights: Mapping[str, float]) -> None:
    """Weigh the tasks anew; the model for these weights becomes the pick."""
    before = recall(study_id, learned)
    choosing.change_weights(study_id, weights)
    remember(learned.run.id, LearnedChoice("preference", before.gamma, {"kind": "preference"}))


def by_point(study_id: int, learned: LearnedSet, gamma: np.ndarray) -> None:
    """Make a measured preference the pick; the sliders follow."""
    choosing.change_weights(
        study_id, {task: round(100 * share) for task, share in zip(learned.tasks, gamma, strict=True)}
    )
    remember(learned.run.id, LearnedChoice("point", gamma, {"kind": "point"}))


def kept(run_id: int, choice: LearnedChoice, *, name: str = "", shortlisted: bool = False) -> LearnedPickRow:
    """The store's pick of this preference, made now if there is none."""
    store = state.store()
    for pick in store.learned_picks(store.run(run_id).study_id):
        if pick.run_id == run_id and _alike(pick.gamma, choice.gamma):
            if shortlisted:
                return store.update_learned_pick(pick.id, name=name or pick.name, shortlisted=True)
            return pick
    return store.add_learned_pick(run_id, choice.gamma, choice.how, name=name, shortlisted=shortlisted)


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two preferences are the same, whose last bits dividing by their sums may have changed."""
    return bool(np.abs(first - second).max() < 1e-9)


def pick_info(learned: LearnedSet, gamma: np.ndarray) -> tuple[BarsInfo, bool]:
    """What the pick's card and bars show of a preference, and whether that is measured or interpolated."""
    values, lower, upper, is_measured = learned.predict(gamma)
    known = state.store().learned_measured(learned.run.id, gamma, "test")
    measured = np.array([known.get(task, np.nan) for task in learned.tasks]) if known else None
    info = BarsInfo(
        tasks=learned.tasks,
        metrics=learned.metrics,
        pretrained=learned.pretrained,
        single=learned.single,
        predicted=values,
        lower=lower,
        upper=upper,
        measured=measured,
        pick="Pick, measured on validation" if is_measured else "Pick, interpolated",
    )
    return info, is_measured


def spots(learned: LearnedSet, choice: LearnedChoice, info: BarsInfo) -> list[Spot]:
    """Models drawn beside the set's: pre-trained, single-task, shortlist, the pick and its measurement."""
    drawn = choosing.anchor_spots(state.anchors(learned.run.study_id))
    for pick in shortlisted(learned):
        if not _alike(pick.gamma, choice.gamma):
            values = learned.predict(pick.gamma)[0]
            drawn.append(Spot("shortlist", pick_name(pick), pick.gamma, values, made_by="preference"))
    # Few measured preferences give no interval, and what is measured needs none.
    has_ends = bool((info.upper > info.lower).any())
    ends = (info.lower, info.upper) if has_ends else (None, None)
    drawn.append(Spot("pick", "Your pick", choice.gamma, info.predicted, *ends, made_by="preference"))
    if info.measured is not None and not np.isnan(info.measured).any():
        label = "Your pick, measured on the test split"
        drawn.append(Spot("measured", label, choice.gamma, info.measured, made_by="preference"))
    return drawn


def shortlisted(learned: LearnedSet) -> list[LearnedPickRow]:
    """The picks of this set on the study's shortlist."""
    picks = state.store().learned_picks(learned.run.study_id)
    return [pick for pick in picks if pick.shortlisted and pick.run_id == learned.run.id]


def pick_name(pick: LearnedPickRow) -> str:
    """What a pick is called."""
    return pick.name or f"Pick {pick.id}"
