"""Fitting surrogates, against SciPy's curve_fit."""

from __future__ import annotations

ROWS = ()
