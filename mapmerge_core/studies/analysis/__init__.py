"""What a study's evaluations say: surrogates, fronts, choices on them, and comparisons."""

from mapmerge_core.studies.analysis.analysis import MergeAnalysis, RuleChoice, StudyAnalysis, analyse
from mapmerge_core.studies.analysis.comparing import Comparison, Row, compare, to_table
from mapmerge_core.studies.analysis.references import References, references, shares_of
from mapmerge_core.studies.analysis.replay import RunResult, run_result

__all__ = [
    "Comparison",
    "MergeAnalysis",
    "References",
    "Row",
    "RuleChoice",
    "RunResult",
    "StudyAnalysis",
    "analyse",
    "compare",
    "references",
    "run_result",
    "shares_of",
    "to_table",
]
