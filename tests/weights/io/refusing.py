"""How a checkpoint that can't be read is refused."""

from __future__ import annotations

import re

import pytest

from mapmerge_core.errors import CheckpointError


def refused(says, function, *arguments):
    """Asserts that a call is refused in one sentence."""
    with pytest.raises(CheckpointError, match=says) as error:
        function(*arguments)
    text = str(error.value)
    assert text.endswith(".")
    assert not re.search(r"\n|Traceback|Error\b", text)
