"""How states, times and sizes are worded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

STATUS: Mapping[str | None, tuple[str, str, Literal["gray", "blue", "orange", "red", "green"]]] = {
    None: ("New", ":material/fiber_new:", "gray"),
    "queued": ("Waiting", ":material/hourglass_empty:", "blue"),
    "running": ("Running", ":material/play_arrow:", "blue"),
    "stopped": ("Stopped", ":material/pause:", "orange"),
    "interrupted": ("Interrupted", ":material/power_off:", "orange"),
    "failed": ("Failed", ":material/error:", "red"),
    "done": ("Done", ":material/check:", "green"),
}
"""A run's status as (label, icon, badge colour); None: no run yet."""


def ago(moment: datetime) -> str:
    """Return how long ago: "just now", "5 min ago", "3 h ago", or the date."""
    seconds = (datetime.now(UTC) - moment.replace(tzinfo=moment.tzinfo or UTC)).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds / 3600:.0f} h ago"
    return f"{moment.day} {moment:%B %Y}"


def duration(seconds: float | None) -> str:
    """Return a duration as people say it: "8 s", "2 min 5 s", "1 h 12 min"."""
    if seconds is None:
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, rest = divmod(whole // 60, 60)
    return f"{hours} h {rest} min"


def share(part: float) -> str:
    """Return a share of a whole: "50%", "12.5%"."""
    return f"{100 * part:.3g}%"


def size(n_bytes: float) -> str:
    """Return a file size: "2.4 MB"."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
