"""Unseen tasks: which of a study's merged models suits data that nobody has labelled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs.learning import load_learned
from mapmerge_core.studies.config.run import check_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.layout import StateDict


@dataclass(frozen=True, eq=False)
class UnlabelledChoice:
    """Models that were tried on unlabelled images.

    Attributes:
        points: Their preferences (``n x K``), or their coefficients (``n x N``).
        entropies: The mean Shannon entropies (n,) of their predictions, in nats.
        best: The row of the least; of several alike the first.
        n_images: How many images were looked at.
    """

    points: np.ndarray
    entropies: np.ndarray
    best: int
    n_images: int


def choose_unlabelled(
    store: Store,
    study_id: int,
    source: DataSource,
    evaluator: Evaluator,
    *,
    run_id: int | None = None,
    n: int = 30,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> UnlabelledChoice:
    """Takes the model that is surest of a task's unlabelled images (Pareto Merging, section 4.3).

    Args:
        store: Where the study is.
        study_id: The study.
        source: The images, of a dataset or loose in a folder; labels are never read. All of the validation
            split, or of the only one, are looked at.
        evaluator: The study's.
        run_id: The run whose learned set to sample from; None for the study's front.
        n: How many models to try, or all of the front's where it has fewer.
        seed: Decides which.
        cancel: Set it to stop between two batches of images.
        progress: Called with the number of batches done and their total after each.

    Raises:
        StudyError: where there is no such study, front or learned set.
        SearchError: where ``n`` is below 1, or the seed can't be used.
        DatasetError: where the images can't be read, or their classes have no names.
        MapMergeError: where the study's models have no heads for unlabelled images.
        Cancelled: once ``cancel`` is set.
    """
    from mapmerge_core.tasks.unlabelled import entropies

    if n < 1:
        raise SearchError(f"Try at least one model, not {n}.")
    check_seed(seed)
    models: Sequence[np.ndarray | Callable[[], StateDict]]
    if run_id is None:
        front = analyse(store, study_id, seed=seed).fitted_front.c
        rows = np.random.default_rng(seed).permutation(len(front))[:n]
        points = front[np.sort(rows)]
        models = list(points)
    else:
        points, models = _sampled(store, study_id, evaluator, run_id, n, seed)
    found, n_images = entropies(evaluator, source, models, cancel=cancel, progress=progress)
    return UnlabelledChoice(points, found, int(found.argmin()), n_images)


def _sampled(
    store: Store, study_id: int, evaluator: Evaluator, run_id: int, n: int, seed: int
) -> tuple[np.ndarray, list[Callable[[], StateDict]]]:
    """Preferences (``n x K``), and what makes a learned set's models for them."""
    from mapmerge_core.weights.vectors.streamed import in_memory

    study = store.study(study_id)
    if run_id not in [run.id for run in store.runs(study_id) if run.method == "pareto_merging"]:
        raise StudyError(f"'{study.name}' has no run {run_id} of Pareto Merging: choose another.")
    learned = load_learned(store, run_id, in_memory(evaluator.exported_vectors))
    gammas = np.random.default_rng(seed).dirichlet(np.ones(len(study.spec.tasks)), n)
    return gammas, [partial(learned.merge, gamma) for gamma in gammas]
