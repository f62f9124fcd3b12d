"""References are worked out with NumPy from the same tensors."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapmerge_core.weights.inspection import inspect_models, odd_one

SHAPES = {"visual.conv1.weight": (4, 3), "visual.class_embedding": (5,), "token_embedding.weight": (6, 2)}


@pytest.fixture
def models(tmp_path):
    """A base and two fine-tuned models, the second in float16 and without its text tower."""
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    near = {name: array + 0.01 * rng.normal(size=array.shape) for name, array in base.items()}
    near["visual.class_embedding"] = base["visual.class_embedding"]
    half = {name: (array * 1.02).astype(np.float16) for name, array in base.items() if "visual" in name}
    return {
        name: save(tmp_path / f"{name}.safetensors", arrays)
        for name, arrays in {"base": base, "near": near, "half": half}.items()
    }


def save(path, arrays):
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    kept = {name: t.float() if t.dtype == torch.float64 else t for name, t in tensors.items()}
    save_file(kept, path)
    return path, {name: tensor.double().numpy() for name, tensor in kept.items()}


def paths(models, *names):
    return {name: models[name][0] for name in names}


def test_norms_cosines_and_changes_are_those_of_numpy(models):
    found = inspect_models(paths(models, "near", "half"), models["base"][0])
    assert found.part == "visual.", "of CLIP the vision tower is merged"
    keys = [name for name in SHAPES if name.startswith("visual.")]
    base = np.concatenate([models["base"][1][key].ravel() for key in keys])
    rows = [np.concatenate([models[n][1][key].ravel() for key in keys]) - base for n in ("near", "half")]
    for model, row in zip(found.models, rows, strict=True):
        assert model.l1_ratio == pytest.approx(np.abs(row).sum() / np.abs(base).sum(), rel=1e-4)
        assert model.l2_ratio == pytest.approx(np.linalg.norm(row) / np.linalg.norm(base), rel=1e-4)
        assert model.n_compared == 2
        assert not model.problems
        assert not model.warning
    near, half = found.models
    assert near.changed == ("visual.conv1.weight",)
    assert set(half.changed) == set(keys)
    cosine = rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    np.testing.assert_allclose(found.cosines, [[1, cosine], [cosine, 1]], atol=1e-5)


def test_a_file_alone_is_described(models):
    path = models["half"][0]
    found = inspect_models(paths(models, "half"))
    (model,) = found.models
    assert found.pretrained is None
    assert found.cosines is None
    assert (model.n_tensors, model.n_parameters, model.dtypes) == (2, 17, {"float16": 2})
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.architecture == "CLIP vision tower (open_clip)"
    (path.parent / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    assert inspect_models(paths(models, "half")).models[0].architecture == "CLIPModel"


def test_what_does_not_fit_is_listed_by_name_and_shape(models, tmp_path):
    arrays = dict(models["base"][1]) | {"visual.extra": np.zeros(2), "visual.class_embedding": np.zeros(9)}
    del arrays["visual.conv1.weight"]
    other = save(tmp_path / "other.safetensors", arrays)[0]
    found = inspect_models(paths(models, "near") | {"other": other}, models["base"][0])
    near, report = found.models
    assert set(report.problems) == {
        "lacks 'visual.conv1.weight' of shape (4, 3)",
        "has 'visual.class_embedding' of shape (9,), not (5,)",
        "has 'visual.extra' of shape (2,) besides",
    }
    assert report.l2_ratio is None
    assert near.l2_ratio is not None, "the others are compared all the same"
    assert np.isnan(found.cosines[1]).all()
    assert found.cosines[0, 0] == pytest.approx(1)


def test_nan_and_infinity_are_named_by_tensor(models, tmp_path):
    arrays = {name: array.copy() for name, array in models["base"][1].items()}
    arrays["visual.conv1.weight"][0, 0] = np.nan
    arrays["token_embedding.weight"][0, 0] = np.inf
    broken = save(tmp_path / "broken.safetensors", arrays)[0]
    (model,) = inspect_models({"broken": broken}).models
    assert set(model.not_finite) == {"visual.conv1.weight", "token_embedding.weight"}


def test_a_model_of_another_origin_and_the_same_model_are_pointed_out(models, tmp_path):
    rng = np.random.default_rng(1)
    stranger = save(tmp_path / "stranger.safetensors", {n: rng.normal(size=s) for n, s in SHAPES.items()})[0]
    found = inspect_models(
        paths(models, "near") | {"stranger": stranger, "copy": models["base"][0]}, models["base"][0]
    )
    near, other, copy = found.models
    assert not near.warning
    assert "probably not fine-tuned from this pre-trained model" in other.warning
    assert "is the pre-trained model itself" in copy.warning


def test_a_model_far_from_the_others_is_pointed_out():
    assert "may have another pre-trained model" in odd_one("d", {"a": 0.02, "b": 0.03, "c": 0.02, "d": 0.2})
    assert not odd_one("d", {"a": 0.1, "b": 0.15, "d": 0.2})
    assert not odd_one("d", {"a": 0.02, "d": 0.2}), "of two models neither is the usual one"
