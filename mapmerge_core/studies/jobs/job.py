"""One piece of background work: its state for whoever shows it, and what its worker uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event, RLock
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from filelock import FileLock

JobKind = Literal["run", "prepare", "measure", "estimate", "complete", "export", "refine", "choose"]
JobStatus = Literal["queued", "running", "done", "stopped", "failed"]

LIVE: tuple[JobStatus, ...] = ("queued", "running")
# Weight of the latest evaluation in the smoothed time that one takes.
_SMOOTHING = 0.2


@dataclass(frozen=True)
class JobSnapshot:
    """A job as it was at one moment.

    Attributes:
        kind: What kind of work it is.
        study_id: The study that it works for.
        run_id: The run that it executes, None for other work.
        title: What it does, in a few words.
        done: Evaluations and training steps done, of ``total``; 0 of 0 while models are read and for exports.
        seconds: Since it started.
        seconds_left: From the smoothed time that an evaluation takes; None before the first.
        error: One sentence, where it failed.
        result: What its work returned; None until it is done.
    """

    id: int
    kind: JobKind
    study_id: int
    run_id: int | None
    title: str
    status: JobStatus = "queued"
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    error: str | None = None
    result: Any = None

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVE


class Job:
    """A job as its worker sees it.

    Args:
        first: How it is in the beginning.
        work: Does it; reports to `count` and looks at ``cancel``.
        lock: Under which the job is changed and read.
        claim: The lock of its run, released at the end.
    """

    def __init__(self, first: JobSnapshot, work: Callable[[Job], Any], lock: RLock, claim: FileLock | None) -> None:
        self.state, self.work, self.claim, self.cancel = first, work, claim, Event()
        self._lock = lock
        self._started: float | None = None
        self._reported: float | None = None
        self._each: float | None = None

    def start(self) -> None:
        """Take note that it runs."""
        self._started = time.monotonic()
        self.state = replace(self.state, status="running")

    def count(self, done: int, total: int) -> None:
        """Take note of progress, and of how long an evaluation takes."""
        with self._lock:
            now = time.monotonic()
            if self._reported is not None and done > self.state.done:
                each = (now - self._reported) / (done - self.state.done)
                before = each if self._each is None else self._each
                self._each = _SMOOTHING * each + (1 - _SMOOTHING) * before
            self._reported = now
            self.state = replace(self.state, done=done, total=total)

    def end(self, status: JobStatus, error: str | None, result: object) -> None:
        """Take note of how it ended."""
        self.state = replace(self.snapshot(), seconds_left=None, status=status, error=error, result=result)

    def snapshot(self) -> JobSnapshot:
        """Return its state now."""
        if self.state.status != "running" or self._started is None:
            return self.state
        now, left = time.monotonic(), None
        if self._each is not None and self._reported is not None:
            left = max(0.0, self._each * (self.state.total - self.state.done) - (now - self._reported))
        return replace(self.state, seconds=now - self._started, seconds_left=left)
