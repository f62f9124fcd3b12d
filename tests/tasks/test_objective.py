from __future__ import annotations

import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.objective import objectives_of
from mapmerge_core.tasks.task import Task


def test_every_metric_of_every_task_is_an_objective():
    tasks = [Task("Cars", None, (ACCURACY, METRICS["Cohen's kappa"]), model="cars"), Task("Skill", None, (LOSS,))]
    objectives = objectives_of(tasks)
    assert [(o.name, o.key, o.task, o.metric.name, o.model) for o in objectives] == [
        ("Cars accuracy", "Cars/accuracy", "Cars", "accuracy", "cars"),
        ("Cars Cohen's kappa", "Cars/Cohen's kappa", "Cars", "Cohen's kappa", "cars"),
        ("Skill", "Skill/loss", "Skill", "loss", None),
    ]
    # Whatever else a task is measured by, an objective keeps its key.
    assert objectives_of([Task("Cars", None)])[0].key == "Cars/accuracy"


def test_names_that_can_not_be_told_apart_are_refused():
    tasks = [Task("Cars", None, (ACCURACY, LOSS)), Task("Cars loss", None)]
    with pytest.raises(DatasetError, match="Two objectives are named 'Cars loss': give each task another"):
        objectives_of(tasks)


def test_a_task_has_metrics_and_each_once():
    with pytest.raises(DatasetError, match="'Cars' has no metric: give it one"):
        Task("Cars", None, ())
    with pytest.raises(DatasetError, match="'Cars' has the metric 'loss' twice"):
        Task("Cars", None, (LOSS, ACCURACY, LOSS))
