"""The command ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapmerge_core.studies.inputs.checking import check_study
from tests.studies.conftest import tiny_config

if TYPE_CHECKING:
    from tests.cli.conftest import Command


def test_models_are_compared_with_the_one_they_started_from(command: Command, tiny_zoo: Path):
    paths = [tiny_zoo / f"{name}.safetensors" for name in ("Colours", "Stripes")]
    against = ("--against", tiny_zoo / "pretrained.safetensors")
    inspection = command.json("inspect", *paths, *against)
    check = check_study(tiny_config(tiny_zoo))
    assert [model["l1_ratio"] for model in inspection["models"]] == pytest.approx(
        [model.l1_ratio for model in check.models], rel=1e-5
    )
    np.testing.assert_allclose(inspection["cosines"], check.cosines, atol=1e-5)
    out, _ = command("inspect", *paths, *against)
    assert "tensors in 'visual.'" in out
    assert "cosine" in out
    out, _ = command("inspect", paths[0])
    assert "CLIP vision tower (open_clip)" in out
    assert "cosine" not in out
    assert json.dumps(inspection["pretrained"]["path"]) == json.dumps(str(against[1]))


def test_what_does_not_fit_is_listed_and_what_cannot_be_read_is_said(command: Command, tiny_zoo: Path, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file({"visual.proj": torch.full((2, 2), torch.nan)}, other)
    out, _ = command("inspect", other, "--against", tiny_zoo / "pretrained.safetensors")
    assert "'other' doesn't fit: it\n  lacks 'visual." in out
    assert "more (--json lists all)" in out
    assert "'other' holds NaN or infinity in\n  'visual.proj'" in out
    _, err = command("inspect", tmp_path / "none.safetensors", code=2)
    assert err == f"There is no checkpoint {tmp_path / 'none.safetensors'}.\n"
    _, err = command("inspect", other, other, code=2)
    assert "Two of the checkpoints are called" in err
