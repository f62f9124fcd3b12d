"""The command line: ``python -m mapmerge_core COMMAND``; ``--help`` lists commands and exit codes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mapmerge_core.cli.parser import build_parser
from mapmerge_core.errors import MapMergeError, RuleError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

UNEXPECTED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    try:
        from mapmerge_core.cli import commands

        command: Callable[[Namespace], int] = getattr(commands, options.command.replace("-", "_"))
        return command(options)
    except RuleError as error:
        return _end(BAD_INPUT, str(error), error.pointer)
    except MapMergeError as error:
        return _end(BAD_INPUT, str(error))
    except KeyboardInterrupt as stop:
        return _end(INTERRUPTED, *map(str, stop.args))
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody wants a traceback
        from mapmerge_core.studies.runs.runner import explain

        return _end(UNEXPECTED, explain(error))


def _end(code: int, *lines: str) -> int:
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return code


if __name__ == "__main__":
    sys.exit(main())
