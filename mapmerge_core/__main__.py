"""The command ``mapmerge``; ``python -m mapmerge_core`` is the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from mapmerge_core.cli.app import app
from mapmerge_core.errors import Cancelled, MapMergeError, RuleError

UNEXPECTED, BAD_INPUT, INTERRUPTED = 1, 2, 130
# What typer says of a typed value, in pydantic's words, and what we say.
_PLAINER = {
    "Input should be a valid integer, unable to parse string as an integer": "give a whole number.",
    "Input should be a valid number, unable to parse string as a number": "give a number.",
    "Value error, ": "",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    try:
        code = get_command(app)(
            list(sys.argv[1:] if arguments is None else arguments), prog_name="mapmerge", standalone_mode=False
        )
    except typer.Exit as stop:
        return stop.exit_code
    except TyperException as error:
        message = error.format_message()
        for theirs, ours in _PLAINER.items():
            message = message.replace(theirs, ours)
        return _end(BAD_INPUT, message)
    except RuleError as error:
        return _end(BAD_INPUT, str(error), error.pointer)
    except MapMergeError as error:
        return _end(BAD_INPUT, str(error))
    except (Cancelled, KeyboardInterrupt, typer.Abort) as stop:
        return _end(INTERRUPTED, str(stop))
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody wants a traceback
        return _end(UNEXPECTED, f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}")
    return code if isinstance(code, int) else 0


def _end(code: int, *lines: str) -> int:
    sys.stderr.writelines(f"{line}\n" for line in lines if line)
    return code


if __name__ == "__main__":
    sys.exit(main())
