"""What commands share: the store, evaluators, progress, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from mapmerge_core.cli.output import progress_bar
from mapmerge_core.errors import Cancelled
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store import Run, Store, Study

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.studies.config import Compute

INFEASIBLE = 3
"""Exit code where no model meets a rule."""


@dataclass
class Session:
    """One command's store and evaluators."""

    store: Store = field(default_factory=Store)
    evaluators: EvaluatorCache = field(default_factory=EvaluatorCache)

    def __post_init__(self) -> None:
        self.store.runs.recover()

    def run(self, run_id: int, compute: Compute | None = None) -> Run:
        """Run a run to its end with a progress bar, on another device than its own where one is given.

        Raises:
            Cancelled: Ctrl-C stopped it; everything measured is kept.
        """
        claim = self.store.runs.claim(run_id)
        study_id = self.store.runs.get(run_id).study_id
        try:
            if compute is not None:
                self.store.runs.set_compute(run_id, compute)
            title = self.store.runs.get(run_id).config.label
            with progress_bar(title) as progress, ctrl_c_stops() as cancel:
                run = execute_run(self.store, run_id, self.evaluators.get, cancel=cancel, progress=progress)
            is_stopped = run.status == "stopped"
        except KeyboardInterrupt:
            is_stopped = True
        finally:
            claim.release()
        if is_stopped:
            raise Cancelled(f"Stopped; everything measured is kept, and `run --study {study_id}` goes on.")
        return run

    def measure(self, study: Study, merge_id: int, x: np.ndarray, compute: Compute) -> dict[str, float]:
        """Measure one model on the test split, and return its values by the objectives' names."""
        evaluator = self.evaluators.get(study, compute)
        with progress_bar("Measuring") as progress:
            values = measure(self.store, study, evaluator, merge_id, x[None], split="test", progress=progress)
        return {o.name: value for o, value in zip(study.config.objectives, values[0].tolist(), strict=True)}

    def measured(self, study: Study, merge_id: int, x: np.ndarray) -> dict[str, float]:
        """Return what is known of a model on the test split, by the objectives' names."""
        values = self.store.evaluations.measured(merge_id, x, "test")
        return {o.name: values[o.key] for o in study.config.objectives if o.key in values}


@contextmanager
def ctrl_c_stops() -> Iterator[Event]:
    """Hand out an event that Ctrl-C sets, so that work stops between two evaluations, never within a commit.

    Pressed again, Ctrl-C interrupts at once.
    """
    cancel = Event()

    def stop(*_: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stopped_kindly() -> Iterator[None]:
    """Turn a stop into the sentence that everything is kept."""
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        raise Cancelled("Stopped; everything measured is kept, and the same command goes on.") from None


def check_device(name: str) -> None:
    """Make sure that a device is there.

    Raises:
        MapMergeError: It isn't.
    """
    from mapmerge_core.tasks.devices import choose_devices

    choose_devices(name)
