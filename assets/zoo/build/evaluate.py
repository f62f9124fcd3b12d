"""Measure the published files through plain open_clip and record the table of results."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn.functional import normalize

from .model import prepare
from .publish import MANIFEST, ZOO
from .report import misses, write_report
from .settings import EVALUATION_SIZE, SURROGATE_SEED

PART = "visual."
SCALARS = (0.05, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
GRID = 10
PAIR_FIT, PAIR_REPEATS = 30, 5
EIGHT_IMAGES, EIGHT_POINTS, EIGHT_FIT, EIGHT_HIGH = 300, 200, 90, 0.6
RIDGE = 1e-5


@dataclass(frozen=True)
class Job:
    """One merged model to measure.

    Attributes:
        c: A coefficient for each task vector.
        tasks: The tasks to measure.
        split: "val" or "test".
        images: How many of the split's first images.
        exact: float32 arithmetic rather than bfloat16.
    """

    c: tuple[float, ...]
    tasks: tuple[str, ...]
    split: str = "test"
    images: int | None = None
    exact: bool = True


Measure = Callable[[Sequence[Job]], np.ndarray]  # (jobs, tasks) accuracies


class Zoo:
    """The published files in memory: model, task vectors, heads and splits."""

    def __init__(self) -> None:
        manifest = json.loads(MANIFEST.read_text())
        models = [task for task in manifest["tasks"] if "checkpoint" in task]
        self.names = tuple(task["name"] for task in models)
        self.kept = tuple(task["name"] for task in manifest["tasks"] if "checkpoint" not in task)
        open_clip.add_model_config(ZOO)
        architecture = Path(manifest["architecture"]).stem
        self.model, _, _ = open_clip.create_model_and_transforms(
            architecture, pretrained=str(ZOO / manifest["pretrained"])
        )
        self.model.eval()
        base = load_file(ZOO / manifest["pretrained"])
        self._shapes = {key: tensor.shape for key, tensor in base.items() if key.startswith(PART)}
        self.base = self._flat(base)
        tuned = [self._flat(load_file(ZOO / task["checkpoint"])) for task in models]
        self.vectors = torch.stack(tuned) - self.base
        tokenizer = open_clip.get_tokenizer(architecture)
        self._splits: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        self._heads = {}
        for task in manifest["tasks"]:
            with np.load(ZOO / task["data"]) as data:
                for split in ("val", "test"):
                    pixels, labels = (prepare(data[f"{split}_images"]), torch.as_tensor(data[f"{split}_labels"]))
                    self._splits[task["name"], split] = pixels, labels
                prompts = [[t.format(c) for t in data["templates"]] for c in data["class_names"]]
            with torch.inference_mode():
                rows = [self.model.encode_text(tokenizer(group), normalize=True).mean(0) for group in prompts]
                self._heads[task["name"]] = normalize(torch.stack(rows), dim=-1)

    def _flat(self, state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([state[key].float().flatten() for key in self._shapes])

    def merge(self, c: Sequence[float]) -> None:
        """Load base + c V into the model, rounded to float16 as an exported file would be."""
        merged = (self.base + torch.tensor(c, dtype=torch.float32) @ self.vectors).half().float()
        parts = merged.split([shape.numel() for shape in self._shapes.values()])
        tower = {k.removeprefix(PART): p.view(s) for (k, s), p in zip(self._shapes.items(), parts, strict=True)}
        self.model.visual.load_state_dict(tower)

    def measure(self, job: Job) -> list[float]:
        """Accuracy of a merged model on each of the job's tasks."""
        self.merge(job.c)
        scores = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=not job.exact):
            for task in job.tasks:
                pixels, labels = (part[: job.images] for part in self._splits[task, job.split])
                found = torch.cat([self.model.visual(batch).float() for batch in pixels.split(250)])
                best = (normalize(found, dim=-1) @ self._heads[task].T).argmax(-1)
                scores.append(float(best.eq(labels).float().mean()))
        return scores


_zoo: Zoo | None = None  # each worker's own


def _open_zoo() -> None:
    global _zoo  # noqa: PLW0603
    torch.set_num_threads(1)
    _zoo = Zoo()


def _measure(job: Job) -> list[float]:
    return _zoo.measure(job)


@contextmanager
def measuring(processes: int = 2) -> Iterator[Measure]:
    """A function that measures many jobs in worker processes."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_open_zoo) as workers:
        yield lambda jobs: np.array(list(workers.map(_measure, jobs)))


def quadratic_terms(C: np.ndarray) -> np.ndarray:
    """Columns 1, c_i and c_i c_j (i <= j) for each row of C (n, N)."""
    n = C.shape[1]
    products = [C[:, i] * C[:, j] for i in range(n) for j in range(i, n)]
    return np.column_stack([np.ones(len(C)), C, *products])


def held_out_r2(C: np.ndarray, y: np.ndarray, fit: np.ndarray, rest: np.ndarray) -> float:
    """R² on the rows `rest` of sigmoid(quadratic), fitted by ridge least squares on the rows `fit`."""
    X = quadratic_terms(C)

    def sigmoid(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(X[rows] @ w).clip(-30, 30)))

    shrink = np.sqrt(RIDGE) * np.eye(X.shape[1])[1:]

    def residuals(w: np.ndarray) -> np.ndarray:
        return np.concatenate([sigmoid(w, fit) - y[fit], shrink @ w])

    def jacobian(w: np.ndarray) -> np.ndarray:
        s = sigmoid(w, fit)
        return np.concatenate([(s * (1 - s))[:, None] * X[fit], shrink])

    w = least_squares(residuals, np.zeros(X.shape[1]), jac=jacobian).x
    wrong = ((sigmoid(w, rest) - y[rest]) ** 2).sum()
    return float(1 - wrong / ((y[rest] - y[rest].mean()) ** 2).sum())


def non_dominated(Y: np.ndarray) -> np.ndarray:
    """Which rows of Y (n, K) no other row beats: at least as good everywhere, better somewhere."""
    beaten = [((y <= Y).all(1) & (y < Y).any(1)).any() for y in Y]
    return ~np.array(beaten)


def _row(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def measure_models(zoo: Zoo, measure: Measure) -> dict:
    """Zero-shot, fine-tuned, cross matrix, norms, cosines and one scalar for all, on the test splits."""
    names, n = zoo.names, len(zoo.names)
    units = np.eye(n)
    alone = measure([Job(tuple(c), names) for c in (np.zeros(n), *units)])
    scalars = measure([Job((s,) * n, names, "val", exact=False) for s in SCALARS])
    best = SCALARS[int(scalars.mean(1).argmax())]
    same = measure([Job((s,) * n, names) for s in (1 / n, 0.3, best)])
    vectors = zoo.vectors.double()
    lengths = vectors.norm(dim=1, keepdim=True)
    ratios = (vectors.abs().sum(1) / zoo.base.double().abs().sum()).numpy()
    return {
        "zero_shot": _row(names, alone[0]),
        "fine_tuned": _row(names, alone[1:].diagonal()),
        "cross": {name: _row(names, row) for name, row in zip(names, alone[1:], strict=True)},
        "l1_ratio": _row(names, ratios),
        "cosine": ((vectors / lengths) @ (vectors / lengths).T).numpy().round(3).tolist(),
        "averaging": {"scalar": 1 / n, **_row(names, same[0])},
        "task_arithmetic": {"scalar": 0.3, **_row(names, same[1])},
        "best_scalar": {"scalar": best, "chosen_on": "val", **_row(names, same[2])},
    }


def measure_kept(zoo: Zoo, measure: Measure, scalars: Sequence[float]) -> dict:
    """What the models, and merges by one scalar for all, keep of the pre-trained model's own skills (test splits)."""
    n = len(zoo.names)
    points = {"zero_shot": np.zeros(n)} | dict(zip(zoo.names, np.eye(n), strict=True))
    points |= {f"c = {scalar:g}": np.full(n, scalar) for scalar in scalars}
    Y = measure([Job(tuple(c), zoo.kept) for c in points.values()])
    return {name: _row(list(points), Y[:, k]) for k, name in enumerate(zoo.kept)}


def measure_pairs(zoo: Zoo, measure: Measure, pairs: Sequence[tuple[str, str]]) -> dict:
    """For each pair, on validation images: the front of a grid over [0, 1]² and R² from 30 of its points."""
    axis = np.linspace(0, 1, GRID)
    C = np.array(list(itertools.product(axis, axis)))
    found = {}
    for pair in pairs:
        rows = np.zeros((len(C), len(zoo.names)))
        rows[:, [zoo.names.index(name) for name in pair]] = C
        Y = measure([Job(tuple(c), tuple(pair), "val", exact=False) for c in rows])
        r2 = np.zeros(2)
        for repeat in range(PAIR_REPEATS):
            order = np.random.default_rng([SURROGATE_SEED, repeat]).permutation(len(C))
            fit, rest = order[:PAIR_FIT], order[PAIR_FIT:]
            r2 += [held_out_r2(C, Y[:, k], fit, rest) / PAIR_REPEATS for k in range(2)]
        front = int(non_dominated(Y).sum())
        found["+".join(pair)] = {"images": EVALUATION_SIZE, "front": front, "r2": _row(pair, r2)}
        print(f"  {'+'.join(pair)}: {front} on the front, R² {r2[0]:.3f} {r2[1]:.3f}", flush=True)
    return found


def measure_eight(zoo: Zoo, measure: Measure) -> dict:
    """All task vectors at once, on validation images: R² on held-out points."""
    n = len(zoo.names)
    C = np.random.default_rng([SURROGATE_SEED, 99]).uniform(0, EIGHT_HIGH, (EIGHT_POINTS, n))
    Y = measure([Job(tuple(c), zoo.names, "val", EIGHT_IMAGES, exact=False) for c in C])
    fit, rest = np.arange(EIGHT_FIT), np.arange(EIGHT_FIT, EIGHT_POINTS)
    r2 = np.array([held_out_r2(C, Y[:, k], fit, rest) for k in range(n)])
    return {
        "points": EIGHT_POINTS,
        "fitted_on": EIGHT_FIT,
        "high": EIGHT_HIGH,
        "r2": _row(zoo.names, r2),
        "mean_r2": round(float(r2.mean()), 4),
    }


def evaluate(pairs: Sequence[tuple[str, str]] | None = None) -> dict:
    """Measure everything and record it in the manifest and in RESULTS.md."""
    zoo = Zoo()
    pairs = list(itertools.combinations(zoo.names, 2)) if pairs is None else pairs
    with measuring() as measure:
        results = measure_models(zoo, measure)
        scalars = [results[key]["scalar"] for key in ("averaging", "task_arithmetic", "best_scalar")]
        results["kept"] = measure_kept(zoo, measure, scalars)
        results["pairs"] = measure_pairs(zoo, measure, pairs)
        results["eight"] = measure_eight(zoo, measure)
    manifest = json.loads(MANIFEST.read_text())
    MANIFEST.write_text(json.dumps({**manifest, "results": results}, indent=2) + "\n")
    print(write_report(results, ZOO / "RESULTS.md"), flush=True)
    for miss in misses(results):
        print(f"MISSED: {miss}", flush=True)
    return results
