"""The errors that a person can cause, each worded as one sentence: what is wrong, and what to do."""

from __future__ import annotations


class MapMergeError(Exception):
    """Base of every error that mapmerge raises on purpose.

    Pages and the command line show ``str(error)`` as it is and never a traceback, so a message is one
    clear sentence that names the file, tensor, task or word at fault.
    """


class CheckpointError(MapMergeError):
    """A checkpoint can't be read, or doesn't fit the pre-trained model."""


class PointError(MapMergeError):
    """A point (coefficients, weights of models, a preference) is not one of its space."""


class RegistryError(MapMergeError):
    """A merge, method, metric, family, reader or link is unknown, or can't be registered."""


class SettingError(MapMergeError):
    """A setting is unknown, of another type, or out of bounds."""


class DatasetError(MapMergeError):
    """A dataset can't be read, or holds nothing to measure."""


class SearchError(MapMergeError):
    """A design, a surrogate or a front can't be computed from what was given."""


class RuleError(MapMergeError):
    """A rule can't be understood.

    Args:
        message: One sentence that names the word at fault.
        text: The whole rule as it was typed.
        position: Index into ``text`` at which that word starts.
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        super().__init__(message)
        self.text = text
        self.position = position

    @property
    def pointer(self) -> str:
        """Two lines, the rule and a caret under the word at fault (for terminals and code blocks)."""
        return f"{self.text}\n{' ' * self.position}^"


class StudyError(MapMergeError):
    """A study, a run or a pick is missing, or can't do what was asked in its present state."""


class ExportError(MapMergeError):
    """A merged model could not be written or did not read back as it was written."""


def reason_of(error: BaseException) -> str:
    """Return what another library's error says, as part of a sentence: its first line, or else its type's name."""
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "")
    return str(text).rstrip(" .:") or type(error).__name__


class Cancelled(Exception):  # noqa: N818 - not an error
    """Somebody asked to stop; everything measured until then is in the store."""
