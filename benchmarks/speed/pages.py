"""The Trade-offs page: from a slider to the new picture, server side."""

from __future__ import annotations

ROWS = ()
