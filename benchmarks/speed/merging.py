"""Merging, against the memory's bandwidth and the usual ways."""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.speed.row import Measured, Row, medians, ratio, times_faster
from benchmarks.speed.towers import N_MODELS, finetuned, tower, vectors
from mapmerge_core.weights.vectors.streamed import open_vectors
from mapmerge_core.weights.vectors.sums import weighted_sums

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.layout import StateDict

M = 8
"""How many c a batch has."""


def coefficients(m: int = 1) -> np.ndarray:
    """Coefficients (m x N) as a search draws them."""
    return np.random.default_rng(0).uniform(0, 1, (m, N_MODELS))


def bandwidth(_: str) -> Measured:
    """Bytes a second of one merge in place, beside a triad's (a = b + s · c) with as many threads."""
    task_vectors, module, [c] = vectors(), tower(), coefficients()
    [group] = task_vectors.groups
    a, b = torch.empty_like(group.base), group.base.clone()
    merge, triad = medians(
        lambda: task_vectors.merge_into(module, c), lambda: torch.add(b, group.base, alpha=1.5, out=a), rounds=15
    )
    d = len(group.base)
    note = f"{N_MODELS} task vectors, {d / 1e6:.1f} million parameters, {torch.get_num_threads()} threads, "
    note += f"{1000 * merge:.1f} ms a merge; {N_MODELS + 2} numbers an element, the triad 3"
    return ratio(4 * d * (N_MODELS + 2) / merge / 1e9, 12 * d / triad / 1e9, "GB/s", note=note)


def _load(path: Path) -> StateDict:
    tensors: StateDict = torch.load(path)
    return tensors


def _subtract(model: StateDict, base: StateDict) -> StateDict:
    return {name: model[name] - tensor for name, tensor in base.items()}


def _scale(difference: StateDict, coefficient: float) -> StateDict:
    return {name: coefficient * tensor for name, tensor in difference.items()}


def _add(total: StateDict, other: StateDict) -> StateDict:
    return {name: total[name] + tensor if name in total else tensor for name, tensor in other.items()}


@contextlib.contextmanager
def _reloader() -> Iterator[Callable[[], None]]:
    """The usual public code for one c: task vectors are made of files, scaled, and added as dictionaries.

    A task vector is read from two files, the pre-trained model and a fine-tuned one; their sum is added to
    the pre-trained model, which is read once more.
    """
    module, [c] = tower(), coefficients()
    pretrained = dict(module.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.pt" for n in range(N_MODELS + 1)]
        torch.save(pretrained, paths[0])
        for n, path in enumerate(paths[1:], 1):
            torch.save(finetuned(pretrained, n), path)

        def reload() -> None:
            total: StateDict = {}
            for path, coefficient in zip(paths[1:], c.tolist(), strict=True):
                base = _load(paths[0])
                total = _add(total, _scale(_subtract(_load(path), base), coefficient))
            module.load_state_dict(_add(_load(paths[0]), total))

        yield reload


def reloading(_: str) -> Measured:
    """One merge in place, beside the usual public code, see `_reloader`."""
    with _reloader() as reload:
        theirs = medians(reload)[0]
    return _faster(theirs, "the files are in the system's cache already; ")


def profile_reloading(_: str) -> None:
    """Where the time of the usual public code goes, and that of a merge in place."""
    task_vectors, module, [c] = vectors(), tower(), coefficients()
    task_vectors.merge_into(module, c)
    with _reloader() as reload:
        reload()
        with cProfile.Profile() as theirs:
            reload()
    with cProfile.Profile() as ours:
        task_vectors.merge_into(module, c)
    shown = "merging.py.*_load|_subtract|_scale|_add|load_state_dict|merge_into|make_sums|add_up|acquire"
    for taken in (theirs, ours):
        pstats.Stats(taken, stream=sys.stderr).sort_stats("cumulative").print_stats(shown)


def loop(_: str) -> Measured:
    """One merge in place, beside adding up scaled tensors one by one, all in memory."""
    module, [c] = tower(), coefficients()
    pretrained = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    models = [finetuned(pretrained, n) for n in range(1, N_MODELS + 1)]
    differences = [{name: model[name] - pretrained[name] for name in pretrained} for model in models]
    del models

    def add_up() -> None:
        merged = {}
        for name, tensor in pretrained.items():
            merged[name] = tensor.clone()
            for coefficient, difference in zip(c.tolist(), differences, strict=True):
                merged[name] += coefficient * difference[name]
        module.load_state_dict(merged)

    return _faster(medians(add_up)[0])


def _faster(theirs: float, note: str = "") -> Measured:
    """One merge in place beside a peer's seconds; the note says how a merge of rounded task vectors does."""
    module, [c] = tower(), coefficients()
    exact, rounded = vectors(), vectors(rounded=True)
    other = tower()
    ours, half = medians(lambda: exact.merge_into(module, c), lambda: rounded.merge_into(other, c), rounds=15)
    note += f"with task vectors in bfloat16 {theirs / half:.1f} times"
    return times_faster(ours, theirs, note=note)


def batch(_: str) -> Measured:
    """Eight c at once, beside one after the other, into buffers that are there."""
    [group] = vectors().groups
    C, flats = coefficients(M), torch.empty(M, len(group.base))

    def singles() -> None:
        for j in range(M):
            weighted_sums(group.base, group.V, C[j : j + 1], flats[j : j + 1])

    together, apart = medians(lambda: weighted_sums(group.base, group.V, C, flats), singles, rounds=7)
    return ratio(1000 * together, 1000 * apart, "ms", note="the same bits")


def on_disk(_: str) -> Measured:
    """One merge of models that stay in their files, beside one of task vectors in memory."""
    module, other, [c] = tower(), tower(), coefficients()
    pretrained = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.safetensors" for n in range(N_MODELS + 1)]
        save_file(pretrained, paths[0])
        for n, path in enumerate(paths[1:], 1):
            save_file(finetuned(pretrained, n), path)
        streamed = open_vectors(paths[0], {path.stem: path for path in paths[1:]}, on_disk=True)
        held = vectors()
        ours, theirs = medians(lambda: streamed.merge_into(other, c), lambda: held.merge_into(module, c))
    return ratio(1000 * ours, 1000 * theirs, "ms", note="the files are in the system's cache already")


def rounded_bandwidth(_: str) -> Measured:
    """One merge of task vectors in bfloat16, beside one of those in float32."""
    module, other, [c] = tower(), tower(), coefficients()
    exact, rounded = vectors(), vectors(rounded=True)
    half, whole = medians(lambda: rounded.merge_into(other, c), lambda: exact.merge_into(module, c), rounds=15)
    bytes_read = (2 * N_MODELS + 8) / (4 * N_MODELS + 8)
    return ratio(1000 * half, 1000 * whole, "ms", note=f"it moves {bytes_read:.2f} of the bytes")


WHAT = "merging one c in place, 8 task vectors, ViT-B/32's tower"
ROWS = (
    Row("merge_bandwidth", WHAT, "the memory's bandwidth (triad)", target=0.7, at_most=False, measure=bandwidth),
    Row(
        "merge_reload",
        WHAT,
        "reloading checkpoints and summing state dicts",
        target=20,
        at_most=False,
        measure=reloading,
        profile=profile_reloading,
    ),
    Row("merge_loop", WHAT, "a loop over tensors in memory", target=3, at_most=False, measure=loop),
    Row(
        "merge_half",
        "the same, task vectors in bfloat16",
        "task vectors in float32",
        target=0.75,
        at_most=True,
        measure=rounded_bandwidth,
    ),
    Row(
        "merge_disk",
        "the same, models that stay on disk",
        "task vectors in memory",
        target=8,
        at_most=True,
        measure=on_disk,
    ),
    Row("merge_batch", "merging 8 c at once", "8 single merges", target=0.4, at_most=True, measure=batch),
)
