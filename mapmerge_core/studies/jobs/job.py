"""One piece of background work: its state for whoever shows it, and what its worker uses."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

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
    status: JobStatus
    done: int
    total: int
    seconds: float
    seconds_left: float | None
    error: str | None
    result: Any

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVE


@dataclass(eq=False)
class Job:
    """A job as its worker sees it.

    Attributes:
        work: Does it; reports to `count` and looks at ``cancel``.
        claim: The lock of its run, released at the end.
        lock: Under which the job is changed and read.
    """

    id: int
    kind: JobKind
    study_id: int
    title: str
    work: Callable[[Job], Any]
    lock: threading.RLock
    run_id: int | None = None
    claim: FileLock | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    status: JobStatus = "queued"
    done: int = 0
    total: int = 0
    started: float | None = None
    ended: float | None = None
    reported: float | None = None
    seconds_each: float | None = None
    error: str | None = None
    result: Any = None

    def count(self, done: int, total: int) -> None:
        """Take note of progress, and of how long an evaluation takes."""
        with self.lock:
            now = time.monotonic()
            if self.reported is not None and done > self.done:
                each = (now - self.reported) / (done - self.done)
                before = each if self.seconds_each is None else self.seconds_each
                self.seconds_each = _SMOOTHING * each + (1 - _SMOOTHING) * before
            self.done, self.total, self.reported = done, total, now

    def snapshot(self) -> JobSnapshot:
        """Return its state now."""
        now = time.monotonic()
        left = None
        if self.status == "running" and self.seconds_each is not None and self.reported is not None:
            left = max(0.0, self.seconds_each * (self.total - self.done) - (now - self.reported))
        return JobSnapshot(
            id=self.id,
            kind=self.kind,
            study_id=self.study_id,
            run_id=self.run_id,
            title=self.title,
            status=self.status,
            done=self.done,
            total=self.total,
            seconds=0.0 if self.started is None else (self.ended or now) - self.started,
            seconds_left=left,
            error=self.error,
            result=self.result,
        )
