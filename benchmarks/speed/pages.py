"""The Trade-offs page: from a slider to the new picture, server side."""

from __future__ import annotations

import contextlib
import cProfile
import os
import pstats
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import numpy as np
import streamlit as st
from streamlit.testing.v1 import AppTest

from benchmarks.speed.row import Measured, Row, medians
from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import DEMO_ZOO, config_from_manifest, demo_tasks
from mapmerge_core.studies.store import Store
from mapmerge_core.tasks.outcome import Outcome
from pages.parts.shared import shell, state

ROOT = Path(__file__).parents[2]
N_TASKS = 8
N_POINTS = 500
ROUNDS = 15
TIMEOUT = 600
SHOWN_CALLS = 40
VALUES = (0, 35, 70, 100, 20, 55, 90)
"""Where sliders are moved to; their number has no divisor in common with that of the tasks."""

WIDGETS = {
    "slider": "st.slider(key, 0, 100, 50, step=5, key=key)",
    "button": "st.button(key, key=key)",
    "button_group": "st.segmented_control(key, ['one', 'two'], default='one', key=key)",
    "selectbox": "st.selectbox(key, range(8), key=key)",
    "toggle": "st.toggle(key, key=key)",
    "text_input": "st.text_input(key, key=key)",
}
"""How the widgets of Trade-offs are drawn by a page that does nothing else, by AppTest's names of them."""


def make_study(folder: Path) -> int:
    """A study of the bundled zoo's tasks whose points have made-up accuracies, smooth in c with some noise.

    Args:
        folder: The data folder.

    Returns:
        Its id.
    """
    rng = np.random.default_rng(0)
    anchors = np.vstack([np.zeros(N_TASKS), np.eye(N_TASKS)])
    C = np.vstack([anchors, rng.uniform(size=(N_POINTS - len(anchors), N_TASKS))])
    best = 0.6 * np.eye(N_TASKS) + rng.uniform(0, 0.3, (N_TASKS, N_TASKS))
    curvature = 0.9 + 2.1 * np.eye(N_TASKS)
    distance = (curvature * (C[:, None] - best) ** 2).sum(axis=2)
    values = 1 / (1 + np.exp(distance - 2.5 + 0.05 * rng.normal(size=distance.shape)))
    store = Store(folder)
    study = store.studies.create("Speed", config_from_manifest(DEMO_ZOO, demo_tasks(N_TASKS)))
    run = store.runs.create(study.id, RunConfig(method_settings={"points": N_POINTS}))
    for c, row in zip(C, values, strict=True):
        for objective, value in zip(study.config.objectives, row, strict=True):
            outcome = Outcome(float(value), 200, b"", 0.1)
            store.evaluations.add(run.merge_id, c, objective.key, "val", outcome, run_id=run.id)
    store.runs.set_status(run.id, "done")
    study_id: int = study.id
    store.close()
    return study_id


@contextlib.contextmanager
def _trade_offs() -> Iterator[AppTest]:
    """The Trade-offs page of a study, drawn."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MAPMERGE_HOME=folder):
        os.environ.pop("MAPMERGE_DATABASE", None)
        study_id = make_study(Path(folder))
        # What is imported in the background would take turns with the page.
        with patch.object(shell, "warm_up"):
            page = AppTest.from_file(ROOT / "app.py", default_timeout=TIMEOUT).run()
            page.switch_page("pages/trade_offs.py")
            page.query_params["study"] = str(study_id)
            _checked(page.run())
            if not page.slider:
                raise MapMergeError("The Trade-offs page has no front to draw.")
            yield page
        state.jobs().close()
        state.store().close()
        st.cache_resource.clear()


def _checked(page: AppTest) -> AppTest:
    if page.exception:
        raise MapMergeError(f"The page stopped: {page.exception[0].value}")
    return page


def _widgets_of(page: AppTest) -> AppTest:
    """A page with as many widgets, drawn."""
    lines = ["import streamlit as st"]
    for kind, drawn in WIDGETS.items():
        lines += [f"for key in [f'{kind}_{{n}}' for n in range({len(page.get(kind))})]:", f"    {drawn}"]
    return _checked(AppTest.from_string("\n".join(lines), default_timeout=TIMEOUT).run())


def _mover(page: AppTest) -> Callable[[], object]:
    """Moves one slider after the other, each time to another value."""
    numbers, values = cycle(range(N_TASKS)), cycle(VALUES)
    return lambda: page.slider[next(numbers)].set_value(next(values)).run()


def measure_redraw(_device: str) -> Measured:
    """The script run that follows a slider, beside that of a page with as many widgets."""
    with _trade_offs() as page:
        bare = _widgets_of(page)
        seconds, floor = medians(_mover(page), _mover(bare), rounds=ROUNDS)
        _checked(page)
    note = (
        f"AppTest runs the page's whole script, a slider in a browser its fragment alone; a page of the same "
        f"widgets and nothing else takes {1000 * floor:.1f} ms in the same run"
    )
    return Measured(1000 * seconds, None, "ms", 1000 * seconds, note)


def profile_redraw(_device: str) -> None:
    """Where the script run that follows a slider spends its time."""
    profile, run = cProfile.Profile(), threading.Thread.run
    with _trade_offs() as page:
        move = _mover(page)
        move()
        # AppTest runs the script in a thread of its own, each time in a new one.
        with patch.object(threading.Thread, "run", lambda thread: profile.runcall(run, thread)):
            for _ in range(ROUNDS):
                move()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(SHOWN_CALLS)


ROWS = (
    Row(
        "redraw",
        f"Trade-offs of {N_TASKS} tasks and {N_POINTS} points: slider to redraw, server side",
        "a bound",
        30,
        at_most=True,
        measure=measure_redraw,
        unit="ms",
        profile=profile_redraw,
    ),
)
