"""Merge fine-tuned models with every trade-off in view.

The names listed here are imported when they are first used, so that ``import mapmerge_core`` is quick and doesn't load
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_NAMES = {
    "errors": ("MapMergeError",),
    "merges.base": ("Merge", "PreparedMerge"),
    "methods.base": ("Method",),
    "registries": ("FAMILIES", "LINKS", "MERGES", "METHODS", "METRICS", "READERS"),
    "search.designs": ("make_design",),
    "search.fronts": ("Front", "find_front"),
    "search.indicators": ("hypervolume",),
    "search.preferences": ("choose_by_preference",),
    "search.rules": ("apply_rule", "parse_rule"),
    "search.spaces": ("Box", "Simplex"),
    "search.surrogates.quadratic": ("QuadraticSurrogate",),
    "studies.analysis": ("analyse", "compare"),
    "studies.config.demo": ("DEMO_ZOO",),
    "studies.config.run": ("RunConfig",),
    "studies.config.study": ("StudyConfig", "TaskConfig"),
    "studies.config.study_file": ("read_study_file",),
    "studies.inputs.evaluators": ("load_evaluator",),
    "studies.runs.exporting": ("export_pick",),
    "studies.runs.runner": ("execute_run",),
    "studies.store": ("Store",),
    "tasks.data_source": ("DataSource",),
    "tasks.evaluator": ("Evaluator",),
    "tasks.families.base": ("Family",),
    "tasks.metrics": ("ACCURACY", "LOSS"),
    "tasks.metrics.base": ("Metric", "Score"),
    "tasks.task": ("Task",),
    "weights.export.writing": ("read_recipe", "save_merged"),
    "weights.vectors.task_vectors": ("TaskVectors",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
