"""Merge fine-tuned models with every trade-off in view.

Names are imported when they are first used, so that ``import mapmerge_core`` is quick and doesn't load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapmerge_core.errors import (
        CheckpointError,
        CoefficientError,
        DatasetError,
        ExportError,
        MapMergeError,
        RuleError,
        SearchError,
        StudyError,
    )
    from mapmerge_core.methods.map import MAP
    from mapmerge_core.search.design import make_design
    from mapmerge_core.search.front import Front, find_front, non_dominated
    from mapmerge_core.search.preferences import choose_by_preference
    from mapmerge_core.search.rules import Rule, RuleResult, apply_rule, parse_rule
    from mapmerge_core.search.surrogate import QuadraticSurrogate
    from mapmerge_core.studies.analysis import Analysis, analyse
    from mapmerge_core.studies.demo import create_demo_study
    from mapmerge_core.studies.evaluators import load_evaluator
    from mapmerge_core.studies.exporting import export_pick
    from mapmerge_core.studies.jobs import Jobs, JobSnapshot
    from mapmerge_core.studies.spec import DEMO_ZOO, RunSettings, StudySpec, TaskSpec, spec_from_manifest
    from mapmerge_core.studies.store import Store, home
    from mapmerge_core.tasks.datasets import Task
    from mapmerge_core.tasks.evaluator import Evaluator, choose_device
    from mapmerge_core.tasks.families.clip import ClipZeroShot
    from mapmerge_core.tasks.metric import ACCURACY, Metric, Outcome
    from mapmerge_core.weights.checkpoints import find_checkpoints, inspect, read_state_dict
    from mapmerge_core.weights.export import ExportResult, Recipe, read_recipe, save_merged
    from mapmerge_core.weights.task_vectors import TaskVectors

__version__ = "0.1.0"

__all__ = [
    "ACCURACY",
    "DEMO_ZOO",
    "MAP",
    "Analysis",
    "CheckpointError",
    "ClipZeroShot",
    "CoefficientError",
    "DatasetError",
    "Evaluator",
    "ExportError",
    "ExportResult",
    "Front",
    "JobSnapshot",
    "Jobs",
    "MapMergeError",
    "Metric",
    "Outcome",
    "QuadraticSurrogate",
    "Recipe",
    "Rule",
    "RuleError",
    "RuleResult",
    "RunSettings",
    "SearchError",
    "Store",
    "StudyError",
    "StudySpec",
    "Task",
    "TaskSpec",
    "TaskVectors",
    "analyse",
    "apply_rule",
    "choose_by_preference",
    "choose_device",
    "create_demo_study",
    "export_pick",
    "find_checkpoints",
    "find_front",
    "home",
    "inspect",
    "load_evaluator",
    "make_design",
    "non_dominated",
    "parse_rule",
    "read_recipe",
    "read_state_dict",
    "save_merged",
    "spec_from_manifest",
]

_MODULES = {
    "errors": (
        "CheckpointError",
        "CoefficientError",
        "DatasetError",
        "ExportError",
        "MapMergeError",
        "RuleError",
        "SearchError",
        "StudyError",
    ),
    "methods.map": ("MAP",),
    "search.design": ("make_design",),
    "search.front": (
        "Front",
        "find_front",
        "non_dominated",
    ),
    "search.preferences": ("choose_by_preference",),
    "search.rules": (
        "Rule",
        "RuleResult",
        "apply_rule",
        "parse_rule",
    ),
    "search.surrogate": ("QuadraticSurrogate",),
    "studies.analysis": (
        "Analysis",
        "analyse",
    ),
    "studies.demo": ("create_demo_study",),
    "studies.evaluators": ("load_evaluator",),
    "studies.exporting": ("export_pick",),
    "studies.jobs": (
        "Jobs",
        "JobSnapshot",
    ),
    "studies.spec": (
        "DEMO_ZOO",
        "RunSettings",
        "StudySpec",
        "TaskSpec",
        "spec_from_manifest",
    ),
    "studies.store": (
        "Store",
        "home",
    ),
    "tasks.datasets": ("Task",),
    "tasks.evaluator": (
        "Evaluator",
        "choose_device",
    ),
    "tasks.families.clip": ("ClipZeroShot",),
    "tasks.metric": (
        "ACCURACY",
        "Metric",
        "Outcome",
    ),
    "weights.checkpoints": (
        "find_checkpoints",
        "inspect",
        "read_state_dict",
    ),
    "weights.export": (
        "ExportResult",
        "Recipe",
        "read_recipe",
        "save_merged",
    ),
    "weights.task_vectors": ("TaskVectors",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
