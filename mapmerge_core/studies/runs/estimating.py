"""Say how long a run will take, by timing what counts anyway."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.studies.config import MIN_IMAGES, RunConfig
from mapmerge_core.studies.runs.measuring import Progress, measure, reference_points
from mapmerge_core.studies.runs.preparing import prepare_merge

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What measuring one point and preparing a merge cost.

    Attributes:
        seconds_per_point: To measure one point on the validation split of every task.
        device: Where it was measured, such as "cpu"; several devices with commas between them.
        precision: What it was computed in, "float32" or "bfloat16".
        seconds_to_prepare: What preparing the merge will take, 0 where it is prepared or takes no time.
        seconds_per_few: To measure one point on the fewest images of each task that a run may ask for.
        sizes: Each task's number of examples in its validation split; empty where parts of it can't be
            measured.
        n_references: Models that are measured on whole splits whatever a run asks for.
        n_devices: How many devices measure points at the same time.
    """

    seconds_per_point: float
    device: str
    precision: str
    seconds_to_prepare: float = 0.0
    seconds_per_few: float = 0.0
    sizes: tuple[int, ...] = ()
    n_references: int = 0
    n_devices: int = 1

    def seconds_for(self, n_points: int, images: int | None = None) -> float:
        """Return the seconds of a run that measures ``n_points``, references included.

        Args:
            n_points: Points that are measured on every task.
            images: Of each task's validation split; all by default.
        """
        n_whole = n_points if images is None or not self.sizes else min(n_points, self.n_references)
        seconds = n_whole * self.seconds_per_point
        if images is not None and n_whole < n_points:
            seconds += (n_points - n_whole) * self._seconds_on(images)
        return self.seconds_to_prepare + seconds / self.n_devices

    def _seconds_on(self, images: int) -> float:
        """Interpolate between the two timings: one point on so many images of each task."""
        few, wanted, every = (sum(min(n, size) for size in self.sizes) for n in (MIN_IMAGES, images, max(self.sizes)))
        if every == few:
            return self.seconds_per_point
        share = (wanted - few) / (every - few)
        # A timing may be off, but fewer images don't take longer.
        fewest = min(self.seconds_per_few, self.seconds_per_point)
        return (1 - share) * fewest + share * self.seconds_per_point


def estimate(
    store: Store,
    study: Study,
    evaluator: Evaluator,
    run: RunConfig,
    *,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Time a real evaluation of a model that every comparison needs, so that nothing is wasted.

    The pre-trained model warms up, the first fine-tuned one is timed. Where the study has their values
    already, perhaps from another device, they are evaluated for the time alone. So is the fine-tuned model on
    few images, where the study can be measured in part, and so are a few steps of a merge that is trained.

    Args:
        store: Where evaluations go.
        study: The study.
        evaluator: The study's evaluator, of the device and precision to time.
        run: The run whose merge to time; it needn't be in the store.
        cancel: Set it to stop after the evaluation in flight.
        progress: Called with evaluations done and their total.

    Raises:
        Cancelled: ``cancel`` was set.
    """
    reference_id, references = reference_points(store, study)
    was_known = store.evaluations.measured(reference_id, references[1], "val")
    measure(store, study, evaluator, reference_id, references[:2], alone=True, cancel=cancel, progress=progress)
    prepared = prepare_merge(store, reference_id, evaluator)
    warm_up, timed = (prepared, references[0]), (prepared, references[1])
    if was_known:
        list(evaluator.outcomes(warm_up))
        if cancel and cancel.is_set():
            raise Cancelled
        seconds = [outcome.seconds for _, outcome in evaluator.outcomes(timed)]
    else:
        rows = store.evaluations.rows(reference_id, "val")
        seconds = [row.seconds for row in rows if np.array_equal(row.x, references[1])]
    few = []
    if study.config.has_parts:
        few = [outcome for _, outcome in evaluator.outcomes(timed, images=MIN_IMAGES)]
    sizes = {
        objective.task: outcome.n_total or outcome.n_examples
        for objective, outcome in zip(study.config.objectives, few, strict=False)
    }
    stored = store.merges.add(study.id, run.merge, run.merge_settings)
    merge = stored.make()
    return Estimate(
        seconds_per_point=sum(seconds),
        device=", ".join(str(each.device) for each in (evaluator, *evaluator.siblings)),
        precision=str(evaluator.precision),
        seconds_to_prepare=0.0 if stored.is_prepared else merge.time_preparation(evaluator),
        seconds_per_few=sum(outcome.seconds for outcome in few),
        sizes=tuple(sizes.values()),
        n_references=len(references),
        n_devices=1 + len(evaluator.siblings),
    )
