"""Merge fine-tuned models with every trade-off in view.

Names are imported when they are first used, so that ``import mapmerge_core`` is quick and doesn't load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapmerge_core.errors import (
        CheckpointError,
        PointError,
        DatasetError,
        ExportError,
        MapMergeError,
        RuleError,
        SearchError,
        StudyError,
    )
    from mapmerge_core.methods.bayesian import BayesianMAP
    from mapmerge_core.methods.catalogue import default_points
    from mapmerge_core.methods.direct import DirectSearch
    from mapmerge_core.methods.map import MAP
    from mapmerge_core.methods.nested import NestedMAP
    from mapmerge_core.merges._pareto_training import ParetoMerging, pareto_merge
    from mapmerge_core.merges._pareto_set import ParetoSet
    from mapmerge_core.merges._training_settings import Training
    from mapmerge_core.search.designs import make_design
    from mapmerge_core.search.fronts import Front, find_front, non_dominated
    from mapmerge_core.search.indicators import (
        generational_distance,
        hypervolume,
        inverted_generational_distance,
        preference_sums,
        preference_win_rate,
        r2,
        sample_preferences,
        win_rate,
    )
    from mapmerge_core.search.preference_grid import PreferenceInterpolator, preference_grid
    from mapmerge_core.search.preferences import choose_by_preference
    from mapmerge_core.search.rules import Rule, RuleResult, apply_rule, parse_rule
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
    from mapmerge_core.studies.analysis.analysis import Analysis, analyse
    from mapmerge_core.studies.runs.baselines import BASELINES, make_baseline, measure_baseline
    from mapmerge_core.studies.inputs.checking import check_spec
    from mapmerge_core.studies.analysis.comparing import Comparison, compare, complete, to_table
    from mapmerge_core.studies.config.demo import create_demo_study, demo_runs, find_demo_study
    from mapmerge_core.studies.inputs.evaluators import load_evaluator
    from mapmerge_core.studies.runs.exporting import (
        export_baseline,
        export_learned_pick,
        export_learned_set,
        export_pick,
    )
    from mapmerge_core.studies.jobs.jobs import Jobs, JobSnapshot
    from mapmerge_core.studies.analysis.learned import LearnedRule, LearnedSet, learned_set
    from mapmerge_core.studies.runs.learning import measure_learned, refine_by_rule
    from mapmerge_core.studies.config.manifest import DEMO_ZOO, spec_from_manifest
    from mapmerge_core.studies.runs.measuring import measure
    from mapmerge_core.studies.discovery.proposing import propose
    from mapmerge_core.studies.analysis.replay import RunFront, run_front
    from mapmerge_core.studies.runs.runner import execute_run
    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.analysis.siblings import sibling
    from mapmerge_core.studies.config.study import StudySpec, TaskSpec, Transform
    from mapmerge_core.studies.store.store import Store, home
    from mapmerge_core.studies.config.study_file import StudyFile, read_study_file, write_study_file
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice, choose_unlabelled
    from mapmerge_core.merges._adamerging import adamerge
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.datasets import open_images, open_texts
    from mapmerge_core.tasks.evaluator import Evaluator, choose_device
    from mapmerge_core.tasks.families import FAMILIES, make_family
    from mapmerge_core.tasks.families.base import Family, Scores
    from mapmerge_core.tasks.families.clip import ClipZeroShot
    from mapmerge_core.tasks.metric import (
        ACCURACY,
        F1,
        LOSS,
        MEAN_CLASS_ACCURACY,
        METRICS,
        PERPLEXITY,
        TOP5_ACCURACY,
        Metric,
        Outcome,
        find_metric,
    )
    from mapmerge_core.merges._statistics import fisher_diagonals, gram_matrices
    from mapmerge_core.tasks.task import Task
    from mapmerge_core.merges._averages import fisher_merge, regmean_merge
    from mapmerge_core.weights.io.checkpoints import find_checkpoints, inspect, open_state_dict, read_state_dict
    from mapmerge_core.weights.export.writing import ExportResult, Recipe, read_recipe, save_merged, save_model
    from mapmerge_core.weights.io.hub import HubRef, fetch, parse_source
    from mapmerge_core.weights.io.inspection import inspect_models
    from mapmerge_core.merges._one_shot import dare, dare_ties, slerp, ties
    from mapmerge_core.weights.vectors.streamed import StreamedVectors, open_vectors
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors
    from mapmerge_core.merges._sparse import apply_transform, dare_drop, elect_sign, ties_trim

__version__ = "0.2.0"

__all__ = [
    "ACCURACY",
    "BASELINES",
    "DEMO_ZOO",
    "F1",
    "FAMILIES",
    "LOSS",
    "MAP",
    "MEAN_CLASS_ACCURACY",
    "METRICS",
    "PERPLEXITY",
    "TOP5_ACCURACY",
    "Analysis",
    "BayesianMAP",
    "CheckpointError",
    "ClipZeroShot",
    "PointError",
    "Comparison",
    "DataSource",
    "DatasetError",
    "DirectSearch",
    "Evaluator",
    "ExportError",
    "ExportResult",
    "Family",
    "Front",
    "HubRef",
    "JobSnapshot",
    "Jobs",
    "LearnedRule",
    "LearnedSet",
    "MapMergeError",
    "Metric",
    "NestedMAP",
    "Outcome",
    "ParetoMerging",
    "ParetoSet",
    "PreferenceInterpolator",
    "QuadraticSurrogate",
    "Recipe",
    "Rule",
    "RuleError",
    "RuleResult",
    "RunFront",
    "RunSettings",
    "Scores",
    "SearchError",
    "Store",
    "StreamedVectors",
    "StudyError",
    "StudyFile",
    "StudySpec",
    "Task",
    "TaskSpec",
    "TaskVectors",
    "Training",
    "Transform",
    "UnlabelledChoice",
    "adamerge",
    "analyse",
    "apply_rule",
    "apply_transform",
    "check_spec",
    "choose_by_preference",
    "choose_device",
    "choose_unlabelled",
    "compare",
    "complete",
    "create_demo_study",
    "dare",
    "dare_drop",
    "dare_ties",
    "default_points",
    "demo_runs",
    "elect_sign",
    "execute_run",
    "export_baseline",
    "export_learned_pick",
    "export_learned_set",
    "export_pick",
    "fetch",
    "find_checkpoints",
    "find_demo_study",
    "find_front",
    "find_metric",
    "fisher_diagonals",
    "fisher_merge",
    "generational_distance",
    "gram_matrices",
    "home",
    "hypervolume",
    "inspect",
    "inspect_models",
    "inverted_generational_distance",
    "learned_set",
    "load_evaluator",
    "make_baseline",
    "make_design",
    "make_family",
    "measure",
    "measure_baseline",
    "measure_learned",
    "non_dominated",
    "open_images",
    "open_state_dict",
    "open_texts",
    "open_vectors",
    "pareto_merge",
    "parse_rule",
    "parse_source",
    "preference_grid",
    "preference_sums",
    "preference_win_rate",
    "propose",
    "r2",
    "read_recipe",
    "read_state_dict",
    "read_study_file",
    "refine_by_rule",
    "regmean_merge",
    "run_front",
    "sample_preferences",
    "save_merged",
    "save_model",
    "sibling",
    "slerp",
    "spec_from_manifest",
    "ties",
    "ties_trim",
    "to_table",
    "win_rate",
    "write_study_file",
]

_MODULES = {
    "errors": (
        "CheckpointError",
        "PointError",
        "DatasetError",
        "ExportError",
        "MapMergeError",
        "RuleError",
        "SearchError",
        "StudyError",
    ),
    "methods.bayesian": ("BayesianMAP",),
    "methods.catalogue": ("default_points",),
    "methods.direct": ("DirectSearch",),
    "methods.map": ("MAP",),
    "methods.nested": ("NestedMAP",),
    "merges._pareto_training": ("ParetoMerging", "pareto_merge"),
    "merges._pareto_set": ("ParetoSet",),
    "merges._training_settings": ("Training",),
    "search.designs": ("make_design",),
    "search.fronts": ("Front", "find_front", "non_dominated"),
    "search.indicators": (
        "generational_distance",
        "hypervolume",
        "inverted_generational_distance",
        "preference_sums",
        "preference_win_rate",
        "r2",
        "sample_preferences",
        "win_rate",
    ),
    "search.preference_grid": ("PreferenceInterpolator", "preference_grid"),
    "search.preferences": ("choose_by_preference",),
    "search.rules": ("Rule", "RuleResult", "apply_rule", "parse_rule"),
    "search.surrogates.quadratic": ("QuadraticSurrogate",),
    "studies.analysis.analysis": ("Analysis", "analyse"),
    "studies.runs.baselines": ("BASELINES", "make_baseline", "measure_baseline"),
    "studies.inputs.checking": ("check_spec",),
    "studies.analysis.comparing": ("Comparison", "compare", "complete", "to_table"),
    "studies.config.demo": ("create_demo_study", "demo_runs", "find_demo_study"),
    "studies.inputs.evaluators": ("load_evaluator",),
    "studies.runs.exporting": (
        "export_baseline",
        "export_learned_pick",
        "export_learned_set",
        "export_pick",
    ),
    "studies.jobs.jobs": ("JobSnapshot", "Jobs"),
    "studies.analysis.learned": ("LearnedRule", "LearnedSet", "learned_set"),
    "studies.runs.learning": ("measure_learned", "refine_by_rule"),
    "studies.config.manifest": ("DEMO_ZOO", "spec_from_manifest"),
    "studies.discovery.proposing": ("propose",),
    "studies.analysis.replay": ("RunFront", "run_front"),
    "studies.runs.measuring": ("measure",),
    "studies.runs.runner": ("execute_run",),
    "studies.config.run": ("RunSettings",),
    "studies.analysis.siblings": ("sibling",),
    "studies.config.study": ("StudySpec", "TaskSpec", "Transform"),
    "studies.store.store": ("Store", "home"),
    "studies.config.study_file": ("StudyFile", "read_study_file", "write_study_file"),
    "studies.runs.unlabelled": ("UnlabelledChoice", "choose_unlabelled"),
    "merges._adamerging": ("adamerge",),
    "tasks.data_source": ("DataSource",),
    "tasks.datasets": ("open_images", "open_texts"),
    "tasks.evaluator": ("Evaluator", "choose_device"),
    "tasks.families": ("FAMILIES", "make_family"),
    "tasks.families.base": ("Family", "Scores"),
    "tasks.families.clip": ("ClipZeroShot",),
    "tasks.metric": (
        "ACCURACY",
        "F1",
        "LOSS",
        "MEAN_CLASS_ACCURACY",
        "METRICS",
        "Metric",
        "Outcome",
        "PERPLEXITY",
        "TOP5_ACCURACY",
        "find_metric",
    ),
    "merges._statistics": ("fisher_diagonals", "gram_matrices"),
    "tasks.task": ("Task",),
    "merges._averages": ("fisher_merge", "regmean_merge"),
    "weights.io.checkpoints": ("find_checkpoints", "inspect", "open_state_dict", "read_state_dict"),
    "weights.export.writing": ("ExportResult", "Recipe", "read_recipe", "save_merged", "save_model"),
    "weights.io.hub": ("HubRef", "fetch", "parse_source"),
    "weights.io.inspection": ("inspect_models",),
    "merges._one_shot": ("dare", "dare_ties", "slerp", "ties"),
    "weights.vectors.streamed": ("StreamedVectors", "open_vectors"),
    "weights.vectors.task_vectors": ("TaskVectors",),
    "merges._sparse": ("apply_transform", "dare_drop", "elect_sign", "ties_trim"),
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
