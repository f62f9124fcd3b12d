"""The command ``ui``: serve the dashboard."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import Annotated, Any

import typer

from mapmerge_core.files import bundled


def ui(
    port: Annotated[int, typer.Option(help="Port to listen on, on this machine alone.", min=1, max=65535)] = 8501,
    browser: Annotated[bool, typer.Option(help="Whether to open a browser.")] = True,
) -> None:
    """Open the dashboard."""
    options = {**_flags(tomllib.loads(bundled(".streamlit", "config.toml").read_text())), "server.port": port}
    options["server.headless"] = str(not browser).lower()
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(bundled("app.py")), *words]
    raise typer.Exit(subprocess.call(command))


def _flags(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return Streamlit's options as flags; those of the theme it finds beside the app by itself."""
    flags: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flags |= _flags(value, f"{prefix}{name}.") if name != "theme" else {}
        elif not isinstance(value, list):
            flags[f"{prefix}{name}"] = str(value).lower() if isinstance(value, bool) else value
    return flags
