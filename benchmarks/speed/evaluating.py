"""Evaluating, against a bare forward loop."""

from __future__ import annotations

ROWS = ()
