"""Where everything is kept: studies, merges, runs, evaluations and picks, in one database and a data folder."""

from mapmerge_core.studies.store.rows import (
    ACTIVE,
    Evaluation,
    Measurements,
    Pick,
    Run,
    RunStatus,
    Split,
    StoredMerge,
    Study,
    point_key,
)
from mapmerge_core.studies.store.store import Store, home

__all__ = [
    "ACTIVE",
    "Evaluation",
    "Measurements",
    "Pick",
    "Run",
    "RunStatus",
    "Split",
    "Store",
    "StoredMerge",
    "Study",
    "home",
    "point_key",
]
