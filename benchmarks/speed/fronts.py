"""Finding the front of the surrogates, against NSGA-III as pymoo has it."""

from __future__ import annotations

ROWS = ()
