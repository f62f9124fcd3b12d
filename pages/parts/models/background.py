"""Reading large files and asking hubs outside the script threads: answers kept, a spinner meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.inputs.checking import StudyCheck, check_study
from mapmerge_core.studies.inputs.downloading import downloads as plan
from pages.parts.models.diagnosis import Diagnosis, diagnose
from pages.parts.shared import live

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig
    from mapmerge_core.weights.io.hub import Download

T = TypeVar("T")
KEPT = 64
"""Answers that are kept."""


class Answers:
    """What was asked, with the answers; one for the whole server."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._futures: dict[tuple[str, str], Future[Any]] = {}
        # Checks wait for each other, as two models may not fit into memory; hubs answer meanwhile.
        self._workers = {name: ThreadPoolExecutor(1, f"mapmerge-{name}") for name in ("check", "ask")}

    def ask(self, worker: str, question: str, key: str, work: Callable[[], Any]) -> Future[Any]:
        """Return the answer that is known or on its way, or else a new one."""
        with self._lock:
            future = self._futures.pop((question, key), None) or self._workers[worker].submit(_guarded, work)
            self._futures[question, key] = future
            while len(self._futures) > KEPT:
                del self._futures[next(iter(self._futures))]
        return future

    def is_good(self, question: str, key: str) -> bool:
        """Return whether the answer is there and no error."""
        with self._lock:
            future = self._futures.get((question, key))
        return future is not None and future.done() and future.exception() is None

    def forget(self, question: str, key: str) -> None:
        """Let a question be asked again."""
        with self._lock:
            self._futures.pop((question, key), None)

    def forget_failures(self, key: str) -> None:
        """Let failed questions be asked again: the network may be back."""
        with self._lock:
            failed = [
                place
                for place, future in self._futures.items()
                if place[1] == key and future.done() and future.exception() is not None
            ]
            for place in failed:
                del self._futures[place]


@st.cache_resource(show_spinner=False)
def _answers() -> Answers:
    return Answers()


def _guarded(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is asked for
    try:
        return work()
    except MapMergeError:
        raise
    except Exception as error:
        # Files of other people's making can break a library in ways that nobody foresaw.
        reason = " ".join(str(error).split())[:200]
        raise MapMergeError(
            f"These models or datasets can't be read ({type(error).__name__}: {reason}): check the files."
        ) from error


def _answer(worker: str, question: str, key: str, work: Callable[[], T], text: str) -> T | None:
    """Return the answer; None, and a spinner that redraws the page by itself, until it is there."""
    future = _answers().ask(worker, question, key, work)
    if future.done():
        answer: T = future.result()
        return answer
    live.wait(future.done, text)
    return None


def _key(config: StudyConfig) -> str:
    """Return what stays as long as a study's files do: what was changed is read again."""
    return f"{config.to_dict()} {[_changed(path) for path in config.files().values()]}"


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def check(config: StudyConfig, *, downloads: bool = False) -> StudyCheck | None:
    """Return what ``check_study`` finds; None, and a spinner, until it has ended.

    Raises:
        MapMergeError: The models don't fit.
    """
    text = "Downloading, reading and comparing" if downloads else "Reading and comparing"
    answers, key = _answers(), _key(config)

    def look() -> StudyCheck:
        try:
            return check_study(config)
        finally:
            # Whatever the check found, less is left to be downloaded.
            answers.forget("downloads", key)

    return _answer("check", "check", key, look, f"{text} the models…")


def is_checked(config: StudyConfig) -> bool:
    """Return whether ``check`` has ended and found no error."""
    return _answers().is_good("check", _key(config))


def check_again(config: StudyConfig) -> None:
    """Let ``check`` and ``downloads`` look once more where they failed."""
    _answers().forget_failures(_key(config))


def diagnosis(config: StudyConfig) -> Diagnosis | None:
    """Return why a study that ``check`` refused doesn't fit; None, and a spinner, until it is known."""
    return _answer("check", "diagnosis", _key(config), lambda: diagnose(config), "Finding out why…")


def downloads(config: StudyConfig) -> tuple[Download, ...] | None:
    """Return what the check would download; None, and a spinner, until the hubs have answered.

    Raises:
        MapMergeError: There is no such model or dataset.
    """
    if not any("://" in place for place in _places(config)):
        return ()
    return _answer("ask", "downloads", _key(config), lambda: plan(config), "Asking how large the downloads are…")


def _places(config: StudyConfig) -> list[str]:
    data = [str(task.data.path) for task in config.tasks if task.data]
    return [*(str(place) for place in config.weights.values()), *data]
