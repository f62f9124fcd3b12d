"""Choose the merged model that suits data that nobody has labelled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from threading import Event
from typing import TYPE_CHECKING, cast

import numpy as np

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.settings import check_seed
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs.preparing import prepare_merge

if TYPE_CHECKING:
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator


@dataclass(frozen=True, eq=False)
class UnlabelledChoice:
    """Models that were tried on unlabelled images.

    Attributes:
        merge_ids: The merge of each of the ``n`` models.
        points: Their points, of each merge's space.
        entropies: The mean Shannon entropies (n,) of their predictions, in nats.
        best: The row with the least, the first of equal ones.
        n_images: How many images were looked at.
    """

    merge_ids: tuple[int, ...]
    points: tuple[np.ndarray, ...]
    entropies: np.ndarray
    best: int
    n_images: int


def choose_unlabelled(
    store: Store,
    study_id: int,
    source: DataSource,
    evaluator: Evaluator,
    *,
    merge_id: int | None = None,
    n: int = 30,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> UnlabelledChoice:
    """Choose the model that is surest of a task's unlabelled images (Pareto Merging, section 4.3).

    Args:
        store: Where the study is.
        study_id: The study.
        source: The images, of a dataset or loose in a folder; labels are never read. All of the validation
            split, or of the only one, are looked at.
        evaluator: The study's evaluator.
        merge_id: Try random points of this prepared merge; by default points of the study's front.
        n: How many models to try, or all of the front's where it has fewer.
        seed: Decides which.
        cancel: Set it to stop between two batches of images.
        progress: Called with the number of batches done and their total after each.

    Raises:
        StudyError: There is no such study, merge or front, or the merge isn't prepared.
        SearchError: ``n`` is below 1.
        SettingError: The seed can't be used.
        DatasetError: The images can't be read, or their classes have no names.
        MapMergeError: The study's models have no heads for unlabelled images.
        Cancelled: ``cancel`` was set.
    """
    from mapmerge_core.tasks.unlabelled import entropies

    if n < 1:
        raise SearchError(f"Try at least one model, not {n}.")
    rng = np.random.default_rng(check_seed(seed))
    study = store.studies.get(study_id)
    if merge_id is None:
        front = analyse(store, study_id, seed=seed).fitted_front
        rows = np.sort(rng.permutation(len(front))[:n])
        chosen = [(cast("int", front.keys[row]), front.x[row]) for row in rows]
    else:
        stored = next((merge for merge in store.merges.all(study_id) if merge.id == merge_id), None)
        if stored is None:
            raise StudyError(f"'{study.name}' has no merge {merge_id}: choose another.")
        merge = stored.make()
        if merge.has_state and not stored.is_prepared:
            raise StudyError(f"{merge.title} is not prepared yet: prepare it first.")
        chosen = [(merge_id, x) for x in stored.space.sample(n, rng)]

    chosen.sort(key=lambda pair: pair[0])  # each merge is prepared once
    parts: list[np.ndarray] = []
    for at, group in groupby(chosen, key=lambda pair: pair[0]):
        prepared = prepare_merge(store, at, evaluator, cancel=cancel)
        points = [(prepared, x) for _, x in group]
        before = sum(map(len, parts))

        def report(done: int, total: int, before: int = before, size: int = len(points)) -> None:
            if progress:
                batches = total // size
                progress(before * batches + done, len(chosen) * batches)

        part, n_images = entropies(evaluator, source, points, cancel=cancel, progress=report)
        parts.append(part)
    merge_ids, xs = zip(*chosen, strict=True)
    measured = np.concatenate(parts)
    return UnlabelledChoice(merge_ids, xs, measured, int(measured.argmin()), n_images)
