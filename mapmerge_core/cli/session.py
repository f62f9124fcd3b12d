"""What commands share: the store, evaluators, Ctrl-C, and how people write weights."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from mapmerge_core.cli.output import progress_bar
from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import execute_run, last_settings
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from mapmerge_core.studies.store.rows import RunRow, StudyRow


INFEASIBLE = 3
"""Exit code where no model meets a rule."""


@dataclass
class Session:
    """One command's store and evaluators."""

    store: Store = field(default_factory=Store)
    evaluators: EvaluatorCache = field(default_factory=EvaluatorCache)

    def __post_init__(self) -> None:
        self.store.recover()

    def run(self, run_id: int, device: str | None = None) -> RunRow:
        """Runs a run to its end, with a progress bar, on another device than its own where one is given."""
        claim = self.store.claim_run(run_id)
        study_id = self.store.run(run_id).study_id
        try:
            if device is not None:
                self.store.set_device(run_id, device)
            with progress_bar(TITLES[self.store.run(run_id).method]) as progress, ctrl_c_stops() as cancel:
                run = execute_run(self.store, run_id, self.evaluators.get, cancel=cancel, progress=progress)
            stopped = run.status == "stopped"
        except KeyboardInterrupt:
            stopped = True
        finally:
            claim.release()
        if stopped:
            raise KeyboardInterrupt(
                f"Stopped; everything measured is kept, and `run --study {study_id}` goes on."
            )
        return run

    def measure(self, study: StudyRow, c: np.ndarray, device: str) -> dict[str, float]:
        """The metrics of the model at ``c`` (N,) on the test split."""
        evaluator = self.evaluators.get(study, device, vectors=last_settings(self.store, study.id).vectors)
        with progress_bar("Measuring") as progress:
            values = measure(self.store, study, evaluator, c[None], split="test", progress=progress)
        return dict(zip(study.spec.task_names, values[0].tolist(), strict=True))


@contextmanager
def ctrl_c_stops() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that a run stops between two evaluations and never within a commit.

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


def parse_weights(text: str, tasks: tuple[str, ...]) -> dict[str, float]:
    """Weights from text such as "MNIST=2,Emoji=1"; "equal" is 1 for each task.

    Raises:
        StudyError: for anything else.
    """
    if text.strip().lower() == "equal":
        return dict.fromkeys(tasks, 1.0)
    weights = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise StudyError(
                f"'{part.strip()}' is no weight: write them as in '{tasks[0]}=2,{tasks[1]}=1', or equal."
            ) from None
    return weights


def check_device(name: str) -> None:
    """Refuses a device that isn't there (MapMergeError)."""
    from mapmerge_core.tasks.evaluator import choose_devices

    choose_devices(name)
