"""Starting: from the command to the first page drawn."""

from __future__ import annotations

ROWS = ()
