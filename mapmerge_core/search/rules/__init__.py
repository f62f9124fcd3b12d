"""Rules, all of them: what a rule is, from text to a rule, and from a rule to a model."""

from mapmerge_core.search.rules.parser import parse_rule, parse_table
from mapmerge_core.search.rules.rule import Rule, Target, Threshold
from mapmerge_core.search.rules.search import Judged, Miss, RuleResult, apply_rule, judge

__all__ = [
    "Judged",
    "Miss",
    "Rule",
    "RuleResult",
    "Target",
    "Threshold",
    "apply_rule",
    "judge",
    "parse_rule",
    "parse_table",
]
