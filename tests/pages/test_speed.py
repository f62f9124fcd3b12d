"""What pages spare themselves, counted and not timed: benchmarks/speed times it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import event

from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.studies.analysis import analysis
from mapmerge_core.studies.store import Store, Study
from mapmerge_core.tasks.outcome import Outcome
from tests.pages.conftest import ROOT, TIMEOUT

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


EVERYTHING = {"fit_prepared", "find_front", "scatter_backdrop", "read"}
"""What takes long: fitting, finding the front, drawing it and reading what was measured."""


def front(app: AppTest) -> dict[str, Any]:
    """The figure of the front as it is sent to the browser."""
    specs = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    (found,) = [spec for spec in specs if spec["data"][0].get("name") == "Front"]
    return found


def pick(figure: dict[str, Any]) -> tuple[float, float]:
    """Where the pick stands in the figure."""
    (trace,) = [trace for trace in figure["data"] if trace.get("legendgroup") == "pick"]
    return trace["x"][0], trace["y"][0]


def but_pick(figure: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything else in the figure."""
    return [trace for trace in figure["data"] if trace.get("legendgroup") != "pick"]


@pytest.fixture
def work(home: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:  # noqa: ARG001 - caches of the test's own
    """How often what takes long was done since it was cleared."""
    from pages.parts.shared import state
    from pages.parts.trade_offs import front_chart

    done: Counter[str] = Counter()

    def counted(where: object, name: str) -> None:
        original = getattr(where, name)

        def call(*args: object, **kwargs: object) -> object:
            done[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(where, name, call)

    counted(QuadraticSurrogate, "fit_prepared")
    counted(analysis, "find_front")
    counted(front_chart, "scatter_backdrop")

    @event.listens_for(state.store()._database._engine, "before_cursor_execute")
    def read(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        # What was measured at the pick alone may be looked up: it may be a new one.
        if "evaluations.value" in statement and "evaluations.x = ?" not in statement:
            done["read"] += 1

    return done


def test_a_slider_moves_the_pick_alone_and_new_points_move_everything(
    visit: Callable[..., AppTest], measured_study: Study, work: Counter[str], home: Path
) -> None:
    app = visit("trade_offs", study=measured_study.id)
    assert set(work) == EVERYTHING, "what is counted is what is done"
    before = front(app)

    work.clear()
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(100).run()
    app.slider(key=f"pref_{measured_study.id}_Stripes").set_value(0).run()
    moved = front(app)
    assert not work
    assert pick(moved) != pick(before)
    assert but_pick(moved) == but_pick(before)
    assert moved["layout"] == before["layout"]

    store = Store(home)
    merge = store.merges.all(measured_study.id)[0]
    for c in np.random.default_rng(3).uniform(size=(4, 2)):
        for objective in measured_study.config.objectives:
            outcome = Outcome(0.2, 10, np.full(10, 0.2, "<f4").tobytes(), 0.1)
            store.evaluations.add(merge.id, c, objective.key, "val", outcome)
    app.run()
    assert set(work) == EVERYTHING
    assert front(app)["data"][0] != before["data"][0]


def test_a_shortlisted_pick_stays_in_the_picture(
    visit: Callable[..., AppTest], measured_study: Study, work: Counter[str]
) -> None:
    app = visit("trade_offs", study=measured_study.id)
    first = pick(front(app))
    app.text_input(key="shortlist_note").set_value("even").run()
    app.button(key="shortlist_save").click().run()
    work.clear()
    app.slider(key=f"pref_{measured_study.id}_Stripes").set_value(0).run()
    kept = [trace for trace in front(app)["data"] if trace.get("legendgroup") == "shortlist"]
    assert [(trace["x"][0], trace["y"][0]) for trace in kept] == [pytest.approx(first)]
    assert not work


FIRST_PAGE = f"""
import sys
from streamlit.testing.v1 import AppTest
from pages.parts.shared import server, shell

shell.warm_up = lambda: print(*sys.modules)
server.prepare()
app = AppTest.from_file({str(ROOT / "app.py")!r}, default_timeout={TIMEOUT}).run()
assert not app.exception, app.exception
assert [subheader.value for subheader in app.subheader][:1] == ["Try a demo"]
"""


def test_the_first_page_imports_nothing_that_later_ones_need(tmp_path: Path, tiny_zoo: Path) -> None:
    environment = {**os.environ, "MAPMERGE_HOME": str(tmp_path / "home"), "MAPMERGE_ZOO": str(tiny_zoo)}
    environment.pop("MAPMERGE_DATABASE", None)
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_PAGE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    imported = set(ended.stdout.split())
    assert {"streamlit", "mapmerge_core.studies.store.store", "pages.parts.studies.demos"} <= imported
    heavy = {"torch", "open_clip", "transformers", "pymoo", "sklearn", "mapmerge_core.studies.jobs.jobs"}
    assert not heavy & imported
