"""What a study is made of and how it is run, and the files that say so. Nothing here imports torch."""

from mapmerge_core.studies.config.run import MIN_IMAGES, QUICK_IMAGES, Compute, RunConfig
from mapmerge_core.studies.config.study import StudyConfig, TaskConfig

__all__ = ["MIN_IMAGES", "QUICK_IMAGES", "Compute", "RunConfig", "StudyConfig", "TaskConfig"]
