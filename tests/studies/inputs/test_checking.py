"""Whether models and datasets fit, on the tiny zoo."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import CheckpointError, DatasetError
from mapmerge_core.studies.inputs.checking import check_study, unreadable_images
from tests.tiny import ARCHITECTURE

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig
from mapmerge_core.tasks.data_source import DataSource


def with_changed(config: StudyConfig, *, checkpoint: Path | None = None, data: DataSource | None = None) -> StudyConfig:
    """The study with another model or other data for its second task."""
    second = config.tasks[1]
    models = dict(config.models) | ({second.model: checkpoint} if checkpoint else {})
    return replace(config, models=models, tasks=(config.tasks[0], replace(second, data=data or second.data)))


def test_models_that_fit_are_described(config: StudyConfig) -> None:
    check = check_study(config)
    colours, stripes = check.models
    assert (colours.name, stripes.name) == ("Colours", "Stripes")
    assert (check.data["Colours"].n_classes, check.data["Stripes"].n_classes) == (5, 4)
    assert check.data["Colours"].sizes == {"val": 60, "test": 60}
    assert colours.n_bytes == next(iter(config.models.values())).stat().st_size
    assert colours.dtypes == "float16"
    tower, before = load_file(next(iter(config.models.values()))), load_file(config.pretrained)
    assert colours.n_tensors == len(tower)
    assert colours.n_changed == sum(not torch.equal(tensor, before[name]) for name, tensor in tower.items())
    assert check.n_parameters == sum(tensor.numel() for tensor in tower.values())
    change = sum(float((t.double() - before[n].double()).abs().sum()) for n, t in tower.items())
    size = sum(float(before[n].double().abs().sum()) for n in tower)
    assert colours.l1_ratio == pytest.approx(change / size, rel=1e-4)
    np.testing.assert_allclose(np.diag(check.cosines), 1, rtol=1e-6)
    assert check.cosines[0, 1] == check.cosines[1, 0]


def test_an_architecture_that_does_not_exist(config: StudyConfig) -> None:
    with pytest.raises(CheckpointError, match="open_clip has no architecture 'ViT-NOPE'"):
        check_study(replace(config, architecture="ViT-NOPE"))


def test_an_architecture_that_does_not_fit_the_pretrained_model(tmp_path: Path, config: StudyConfig) -> None:
    wider = tmp_path / "wider.json"
    wider.write_text(json.dumps({**ARCHITECTURE, "embed_dim": 48}))
    with pytest.raises(CheckpointError, match=r"pretrained\.safetensors does not fit the architecture .*wider"):
        check_study(replace(config, architecture=str(wider)))


def test_a_tensor_with_nan_is_named(tmp_path: Path, config: StudyConfig) -> None:
    tower = load_file(list(config.models.values())[1])
    tower["visual.proj"][0, 0] = torch.nan
    save_file(tower, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"'visual\.proj' of the model 'Stripes' holds NaN"):
        check_study(with_changed(config, checkpoint=tmp_path / "nan.safetensors"))


def test_a_missing_tensor_is_named(tmp_path: Path, config: StudyConfig) -> None:
    tower = load_file(list(config.models.values())[1])
    del tower["visual.proj"]
    save_file(tower, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"model 'Stripes' lacks the tensor 'visual\.proj'"):
        check_study(with_changed(config, checkpoint=tmp_path / "cut.safetensors"))


def test_an_empty_dataset(tmp_path: Path, config: StudyConfig) -> None:
    arrays = dict(np.load(config.tasks[1].data.path))
    arrays |= {"test_images": arrays["test_images"][:0], "test_labels": arrays["test_labels"][:0]}
    np.savez(tmp_path / "empty.npz", **arrays)
    with pytest.raises(DatasetError, match=r"empty\.npz: the split 'test' is empty"):
        check_study(with_changed(config, data=DataSource(path=tmp_path / "empty.npz")))


def folder_of_images(folder: Path, broken: int) -> DataSource:
    """Eight images of each of two classes and splits, the first ``broken`` validation images cut off."""
    for split in ("val", "test"):
        for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (16, 16), colour).save(folder / split / name / f"{number}.png")
    for path in sorted((folder / "val").rglob("*.png"))[:broken]:
        path.write_bytes(path.read_bytes()[:40])
    return DataSource(path=folder)


def test_unreadable_images_are_named_by_task(
    tmp_path: Path, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))
    assert unreadable_images(config) == {}
    some = with_changed(config, data=folder_of_images(tmp_path / "some", broken=2))
    (task, names), *others = unreadable_images(some).items()
    assert (task, others) == ("Stripes", [])
    assert [name.replace("\\", "/").removeprefix("val/") for name in names] == ["blue/0.png", "blue/1.png"]
    agreed = with_changed(config, data=replace(some.tasks[1].data, skip_corrupt=True))
    assert unreadable_images(agreed) == {}
    # Neither of these could be used without some images.
    assert unreadable_images(with_changed(config, data=folder_of_images(tmp_path / "all", broken=16))) == {}
    shutil.rmtree(tmp_path / "some")
    assert unreadable_images(some) == {}
