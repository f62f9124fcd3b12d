"""The command line: every command is a module of this package with one function."""

from __future__ import annotations

import typer

from mapmerge_core.cli import compare, demo, export, front, inspect, listing, pick, run, studies, ui

EPILOG = """\
Everything is kept where the dashboard keeps it: in $MAPMERGE_HOME, by default the platform's data folder. STUDY is a
study's name or number, as `mapmerge studies` lists them.

Exit status: 0 done; 1 something unexpected went wrong; 2 something is wrong with what was asked; 3 no model meets the
rule, and the nearest one is named; 130 interrupted: everything measured is kept, and the same command goes on.
"""

app = typer.Typer(
    name="mapmerge",
    help="See every trade-off of a model merge, pick one, export it.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in (
    demo.demo,
    run.run,
    front.front,
    pick.pick,
    compare.compare,
    export.export,
    studies.studies,
    inspect.inspect,
    listing.merges,
    listing.methods,
    listing.metrics,
    listing.families,
    ui.ui,
):
    app.command(epilog=EPILOG)(function)
