"""The results as a Markdown table, and what of the targets they miss."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

TEXT = """# What the zoo's models score

Written by `python -m assets.zoo.build`. Test accuracy in percent, 1,000 images a task, float32, one seed.
Merged models are rounded to float16 first, as an exported file is. The best single scalar was chosen on
the validation splits.

{scores}

The L1 ratio is |v|/|θ_pre| over the vision tower, in percent.

## Every model on every task

Rows are models, columns are tasks.

{cross}

## What is kept of the pre-trained model

Rows are tasks that no model was fine-tuned for, columns are the pre-trained model, the fine-tuned ones, and all
of them merged with one scalar.

{kept}

## Cosines between task vectors

{cosines}

## Pairs

On the first validation images of each task: the number of non-dominated points of a 10 x 10 grid over
[0, 1]², and R² of a quadratic surrogate with the sigmoid link, fitted on 30 of the points and scored on the
other 70 (mean of five draws).

{pairs}

## All eight

On 300 validation images a task, c uniform in [0, {high}]^8: R² of the same surrogate, fitted on {fitted}
points and scored on the other {rest}.

{eight}
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(row: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{100 * row[name]:.1f}" for name in names]


def _mean(row: Mapping[str, float], names: Sequence[str]) -> float:
    return float(np.mean([row[name] for name in names]))


def report(results: dict) -> str:
    """All results as Markdown."""
    names, eight = list(results["zero_shot"]), results["eight"]
    scored = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned"} | {
        key: f"{words}, c = {results[key]['scalar']:g}"
        for key, words in (
            ("averaging", "averaging"),
            ("task_arithmetic", "task arithmetic"),
            ("best_scalar", "best single scalar"),
        )
    }
    scores = [
        [words, *_percent(results[key], names), f"{100 * _mean(results[key], names):.1f}"]
        for key, words in scored.items()
    ]
    cosines = zip(names, results["cosine"], strict=True)
    pairs = [
        [
            pair.replace("+", " + "),
            str(row["images"]),
            str(row["front"]),
            *(f"{value:.3f}" for value in row["r2"].values()),
        ]
        for pair, row in results["pairs"].items()
    ]
    kept = results["kept"]
    columns = list(next(iter(kept.values())))
    tables = {
        "kept": _table(
            ["", *(column.replace("_", "-") for column in columns)],
            [[name, *_percent(row, columns)] for name, row in kept.items()],
        ),
        "scores": _table(["", *names, "mean"], [*scores, ["L1 ratio", *_percent(results["l1_ratio"], names), ""]]),
        "cross": _table(["", *names], [[name, *_percent(results["cross"][name], names)] for name in names]),
        "cosines": _table(["", *names], [[name, *(f"{x:.2f}" for x in row)] for name, row in cosines]),
        "pairs": _table(["pair", "images", "front", "R² of the first", "R² of the second"], pairs),
        "eight": _table(
            [*names, "mean"], [[*(f"{eight['r2'][name]:.2f}" for name in names), f"{eight['mean_r2']:.2f}"]]
        ),
    }
    rest = eight["points"] - eight["fitted_on"]
    return TEXT.format(**tables, high=eight["high"], fitted=eight["fitted_on"], rest=rest)


def write_report(results: dict, path: Path) -> str:
    """Write the report and return it."""
    text = report(results)
    path.write_text(text, encoding="utf-8")
    return text


def misses(results: dict) -> list[str]:
    """The targets that the results miss, in words."""
    names = list(results["zero_shot"])
    zero, tuned, ratios = (np.array([results[k][n] for n in names]) for k in ("zero_shot", "fine_tuned", "l1_ratio"))
    cross = np.array([[results["cross"][model][task] for task in names] for model in names])
    gain = _mean(results["best_scalar"], names) - zero.mean()
    checks = {
        "fine-tuned mean of at least 90 %": tuned.mean() >= 0.90,
        "no fine-tuned model below 82 %": tuned.min() >= 0.82,
        "zero-shot mean between 40 and 65 %": 0.40 <= zero.mean() <= 0.65,
        "every model best on its own task": (cross.argmax(0) == np.arange(len(names))).all(),
        "L1 ratios between 1 and 7 %": ratios.min() >= 0.01 and ratios.max() <= 0.07,
        "largest L1 ratio at most twice the smallest": ratios.max() <= 2 * ratios.min(),
        "one scalar beats zero-shot by 3 points": gain >= 0.03,
        "pairs' fronts of at least 15 points": min(p["front"] for p in results["pairs"].values()) >= 15,
        "pairs' R² of at least 0.95": min(min(p["r2"].values()) for p in results["pairs"].values()) >= 0.95,
        "mean R² of at least 0.9 for all eight": results["eight"]["mean_r2"] >= 0.9,
    }
    return [words for words, holds in checks.items() if not holds]
