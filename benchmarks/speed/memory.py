"""What a study of large models holds in memory."""

from __future__ import annotations

ROWS = ()
