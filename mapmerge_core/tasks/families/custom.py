"""A person's own function or class, named by its place: ``module:function``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import MapMergeError
from mapmerge_core.settings import NoSettings
from mapmerge_core.settings import make as make_settings
from mapmerge_core.tasks.families.base import Family

if TYPE_CHECKING:
    from mapmerge_core.tasks.task import Task


@cache
def own_family(place: str) -> type[Family]:
    """Return the family at ``module:function`` or ``module:class``; nothing is imported yet."""
    return type("OwnFamily", (OwnFamily,), {"name": place, "title": place, "__doc__": OwnFamily.__doc__})


class OwnFamily(Family):
    """Models of a person's own code, which brings its data and says what it can measure."""

    metrics = ()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Wait for `make`: only the imported code knows its settings."""

    @classmethod
    def loaded(cls) -> type[Family]:
        own = _imported(cls.name)
        if isinstance(own, type) and issubclass(own, Family):
            return own.loaded()
        if isinstance(own, type) or not callable(own):
            raise MapMergeError(f"'{cls.name}' is no function and no family of models: name one of these.")
        from mapmerge_core.tasks.families._models.callable import CallableFamily

        return CallableFamily

    @classmethod
    def make(cls, architecture: str, pretrained: Path, options: Mapping[str, Any], tasks: Sequence[Task]) -> Family:
        family, own = cls.loaded(), _imported(cls.name)
        if not isinstance(own, type):
            make_settings(NoSettings, options, what=f"'{cls.name}'")
            measured: Any = family
            made: Family = measured(own, pretrained, tasks, name=cls.name)
            return made
        try:
            return own.make(architecture, pretrained, options, tasks)  # type: ignore[attr-defined, no-any-return]
        except MapMergeError:
            raise
        except Exception as error:
            raise MapMergeError(
                f"'{cls.name}' can't be made, it raises {type(error).__name__}: {' '.join(str(error).split())}."
            ) from error

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:
        return cls.loaded().left_out(architecture, pretrained)


def _imported(place: str) -> Any:  # noqa: ANN401 - whatever a person named
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MapMergeError(
            f"The module '{error.name}' of '{place}' is not on Python's path: install it, or set PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise MapMergeError(f"The module '{module}' has no '{attribute}': check the name.") from error
    except Exception as error:  # a person's module may fail in any way
        raise MapMergeError(
            f"The module '{module}' can't be imported, it raises {type(error).__name__}: "
            f"{' '.join(str(error).split())}."
        ) from error
