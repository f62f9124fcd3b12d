"""How tests measure models, by the names of tasks with one metric each."""

from __future__ import annotations


class FixedModel:
    """Any model with the pre-trained one's keys, whatever the point."""

    def __init__(self, evaluator, state_dict):
        self.vectors, self.exported = evaluator.vectors, evaluator.exported_vectors
        self.state_dict = state_dict

    def write(self, module, _x):
        self.vectors.release(module)
        self.exported.load_into(module, self.state_dict)

    write_exact = write


def outcomes(evaluator, c, **options):
    """Yield each task's name and the outcome of θ(c); ``known`` is ``measured`` by task."""
    yield from _by_task(evaluator, evaluator.at(c), **options)


def outcomes_of(evaluator, state_dict, **options):
    """Yield each task's name and the outcome of any model with the pre-trained one's keys."""
    yield from _by_task(evaluator, (FixedModel(evaluator, state_dict), ()), **options)


def _by_task(evaluator, point, *, tasks=None, known=None, **options):
    keys = {objective.task: objective.key for objective in evaluator.objectives}
    measured = known and {keys[task]: numbers for task, numbers in known.items()}
    chosen = None if tasks is None else [keys[task] for task in tasks]
    for key, outcome in evaluator.outcomes(point, chosen, measured=measured, **options):
        yield key.rpartition("/")[0], outcome
