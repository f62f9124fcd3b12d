"""How tests measure models, by the names of tasks with one metric each."""

from __future__ import annotations

from mapmerge_core.tasks.evaluator import FixedModel


def outcomes(evaluator, c, **options):
    """Yield each task's name and the outcome of θ(c); ``known`` is ``measured`` by task."""
    yield from _by_task(evaluator, evaluator.at(c), **options)


def outcomes_of(evaluator, state_dict, **options):
    """Yield each task's name and the outcome of any model with the pre-trained one's keys."""
    model = FixedModel(evaluator.vectors, evaluator.exported_vectors, state_dict)
    yield from _by_task(evaluator, (model, ()), **options)


def _by_task(evaluator, point, *, tasks=None, known=None, **options):
    keys = {objective.task: objective.key for objective in evaluator.objectives}
    measured = known and {keys[task]: numbers for task, numbers in known.items()}
    chosen = None if tasks is None else [keys[task] for task in tasks]
    for key, outcome in evaluator.outcomes(point, chosen, measured=measured, **options):
        yield key.rpartition("/")[0], outcome
