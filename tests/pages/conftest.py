"""Pages run without a browser, on the tiny zoo and a data folder of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from mapmerge_core.studies.config.demo import demo_study
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store import Run, Store, Study

if TYPE_CHECKING:
    from mapmerge_core.studies.config import RunConfig

ROOT = Path(__file__).parents[2]
TIMEOUT = 60


@pytest.fixture
def home(tmp_path: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of the test's own; the demos come from the tiny zoo."""
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAPMERGE_ZOO", str(tiny_zoo))
    monkeypatch.delenv("MAPMERGE_DATABASE", raising=False)
    st.cache_resource.clear()
    st.cache_data.clear()
    yield tmp_path / "home"
    from pages.parts.shared import state

    state.jobs().close()
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def visit(home: Path) -> Callable[..., AppTest]:  # noqa: ARG001 - the pages read it
    """Opens a page as a browser would, each time in a session of its own."""

    def open_page(page: str, **query: object) -> AppTest:
        app = AppTest.from_file(ROOT / "app.py", default_timeout=TIMEOUT)
        for name, value in query.items():
            app.query_params[name] = str(value)
        app.run()
        if page != "studies":
            app.switch_page(f"pages/{page}.py")
            for name, value in query.items():
                app.query_params[name] = str(value)
            app.run()
        assert not app.exception, app.exception
        return app

    return open_page


@pytest.fixture
def measured_study(home: Path, tiny_zoo: Path) -> Study:
    """A study of two tasks whose run of 12 points is done."""
    return make_demo(home, tiny_zoo)


def make_demo(home: Path, zoo: Path, *, points: int = 12) -> Study:
    """Make the demo of two tasks, with its run done."""
    store = Store(home)
    demo = demo_study(2, points=points, zoo=zoo)
    study = store.studies.create(demo.name, demo.config)
    execute(store, study.id, demo.run)
    study = store.studies.get(study.id)
    store.close()
    return study


def execute(store: Store, study_id: int, config: RunConfig) -> Run:
    """Create a run and do it."""
    run = store.runs.create(study_id, config)
    claim = store.runs.claim(run.id)
    try:
        return execute_run(store, run.id, EvaluatorCache().get)
    finally:
        claim.release()


def wait_for_jobs(app: AppTest, study_id: int) -> AppTest:
    """Waits until no job of the study is live, then draws the page again."""
    from pages.parts.shared import state

    deadline = time.monotonic() + TIMEOUT
    while any(job.is_live for job in state.jobs().for_study(study_id)):
        assert time.monotonic() < deadline, state.jobs().for_study(study_id)
        time.sleep(0.05)
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app: AppTest) -> str:
    """Everything that the page says, in one string."""
    kinds = ("title", "subheader", "markdown", "caption", "error", "warning", "info", "success", "code", "html")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind))
