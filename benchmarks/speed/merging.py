"""Merging, against the memory's bandwidth and the usual ways."""

from __future__ import annotations

ROWS = ()
