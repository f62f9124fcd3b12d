from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch.nn import functional

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.families._models.classifier import ClassifierWithHeads
from mapmerge_core.tasks.metrics import LOSS
from mapmerge_core.tasks.metrics.perplexity import PERPLEXITY
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.subsets import nested_order
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.io.tensor_files import write_tensors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tasks.measuring import outcomes, outcomes_of

ARCHITECTURE, SIZE = "test_resnet", 32
CLASSES = {"Stripes": 4, "Hues": 5}
SPLITS = {"train": 240, "val": 60, "test": 160}
HALF = [0.5, 0.5]


def draw(name, labels, rng):
    """Dark gray stripes in four directions, or bright pictures with a tinge of one of five colours."""
    noise = rng.normal(0, 1, (len(labels), SIZE, SIZE, 3))
    if name == "Hues":
        colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
        pictures = 190 + 50 * noise + 15 * (colours[labels] - 0.5)[:, None, None]
        return (pictures + rng.normal(0, 8, (len(labels), 1, 1, 3))).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:SIZE, :SIZE]
    patterns = np.stack([y // 3 % 2, x // 3 % 2, (x + y) // 4 % 2, (x - y) // 4 % 2])
    contrast = 12 * rng.choice([-1, 1], (len(labels), 1, 1, 1))
    return (60 + 25 * noise + contrast * (patterns[labels][..., None] - 0.5)).clip(0, 255).astype(np.uint8)


def write_data(path, rng, name, splits=SPLITS, n_classes=None):
    arrays = {}
    for split, size in splits.items():
        labels = rng.permutation(np.arange(size) % (n_classes or CLASSES[name]))
        arrays |= {f"{split}_labels": labels, f"{split}_images": draw(name, labels, rng)}
    np.savez(path, class_names=[f"class {i}" for i in range(CLASSES[name])], templates=["{}"], **arrays)
    return arrays["train_images"], arrays["train_labels"]


def train(model, images, labels, rng, rate):
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(40):
        rows = rng.integers(0, len(labels), 32)
        loss = functional.cross_entropy(model.train()(inputs[rows]), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build_zoo(folder):
    """A small ResNet trained on two tasks together, and fine-tuned on each with a head of its own."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    data = {name: write_data(folder / f"{name}.npz", rng, name) for name in CLASSES}
    images = np.concatenate([images for images, _ in data.values()])
    labels = np.concatenate([data["Stripes"][1], data["Hues"][1] + CLASSES["Stripes"]])
    base = timm.create_model(ARCHITECTURE, num_classes=sum(CLASSES.values()))
    train(base, images, labels, rng, 2e-3)
    save_file(base.state_dict(), folder / "pretrained.safetensors")
    for name, n_classes in CLASSES.items():
        model = timm.create_model(ARCHITECTURE, num_classes=n_classes)
        backbone = {key: value for key, value in base.state_dict().items() if not key.startswith("fc.")}
        model.load_state_dict(backbone, strict=False)
        train(model, *data[name], rng, 1e-3)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("resnets"))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAPMERGE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def tasks_in(folder):
    return [Task.from_file(name, folder / f"{name}.npz") for name in CLASSES]


def make_evaluator(zoo, tasks=None, **options):
    family = ClassifierWithHeads(
        ARCHITECTURE, zoo / "pretrained.safetensors", ClassifierWithHeads.Settings(**{"image_size": SIZE, **options})
    )
    vectors = TaskVectors.from_files(
        zoo / "pretrained.safetensors",
        {name: zoo / f"{name}.safetensors" for name in CLASSES},
        without=ClassifierWithHeads.left_out(ARCHITECTURE, zoo / "pretrained.safetensors"),
    )
    return Evaluator(family, vectors, tasks or tasks_in(zoo), device="cpu", precision="float32")


@pytest.fixture(scope="module")
def evaluator(zoo):
    return make_evaluator(zoo)


def values(outcomes):
    return np.array([outcome.value for outcome in outcomes.values()])


def pixels(zoo, name, split):
    """A split as timm's own transform prepares it, and its labels."""
    model = timm.create_model(ARCHITECTURE)
    transform = create_transform(**resolve_data_config({"img_size": SIZE, "crop_pct": 1.0}, model=model))
    with np.load(zoo / f"{name}.npz") as stored:
        images = [transform(Image.fromarray(image)) for image in stored[f"{split}_images"]]
        return torch.stack(images), stored[f"{split}_labels"]


def test_an_export_is_the_measured_model_to_the_last_example(zoo, evaluator, tmp_path):
    measured = evaluator.evaluate(HALF, split="test")
    statistics, heads = evaluator.family.extras()
    assert set(heads) == {"head-Stripes", "head-Hues"}
    merged = evaluator.exported_vectors.merge(HALF)
    assert statistics.keys() == {key for key in merged if "running_" in key or "num_batches" in key}
    write_tensors(tmp_path / "merged.safetensors", {**merged, **statistics})
    for name, tensors in heads.items():
        write_tensors(tmp_path / f"{name}.safetensors", tensors)

    backbone = load_file(tmp_path / "merged.safetensors")
    for name, n_classes in CLASSES.items():
        plain = timm.create_model(ARCHITECTURE, num_classes=n_classes).eval()
        head = load_file(tmp_path / f"head-{name}.safetensors")
        plain.load_state_dict(backbone | {f"fc.{key}": value for key, value in head.items()})
        images, labels = pixels(zoo, name, "test")
        with torch.inference_mode():
            right = (plain(images).argmax(dim=1).numpy() == labels).astype(bool)
        assert np.array_equal(unpack(measured[name].per_example, len(labels)), right)
        assert measured[name].value == right.mean() > 2 / n_classes


def test_some_images_are_classified_as_among_all(zoo, evaluator):
    whole = evaluator.evaluate(HALF)
    for name, part in outcomes(evaluator, HALF, images=20):
        labels = np.load(zoo / f"{name}.npz")["val_labels"]
        every = unpack(whole[name].per_example, len(labels))
        np.testing.assert_array_equal(unpack(part.per_example, 20), every[nested_order(labels, len(labels))[:20]])


def test_statistics_are_those_of_torchs_own_update_over_images_of_all_tasks(zoo, evaluator):
    evaluator.evaluate(HALF)
    statistics, _ = evaluator.family.extras()
    plain = timm.create_model(ARCHITECTURE, num_classes=0)
    plain.load_state_dict(evaluator.vectors.merge(HALF))
    everything = torch.cat([pixels(zoo, name, "train")[0] for name in CLASSES])
    order = np.random.default_rng(0).permutation(len(everything))
    torch.optim.swa_utils.update_bn(everything[order].tensor_split(4), plain)
    expected = {key: value for key, value in plain.state_dict().items() if key in statistics}
    torch.testing.assert_close(dict(statistics), expected)


def test_heads_are_scikit_learns_logistic_regression_on_standardised_features(zoo, evaluator):
    evaluator.evaluate(HALF)
    statistics, heads = evaluator.family.extras()
    plain = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    plain.load_state_dict(evaluator.vectors.merge(HALF) | statistics)
    for name in CLASSES:
        train_images, train_labels = pixels(zoo, name, "train")
        test_images, _ = pixels(zoo, name, "test")
        with torch.inference_mode():
            features, of_test = plain(train_images).numpy(), plain(test_images)
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=200))
        reference.fit(features.astype(np.float64), train_labels)
        head = heads[f"head-{name}"]
        ours = functional.linear(of_test, head["weight"], head["bias"]).softmax(dim=1)
        np.testing.assert_allclose(ours, reference.predict_proba(of_test.double()), atol=1e-4)


def accuracy_with_old_heads(zoo, evaluator):
    """Of the model as it was last merged, with the heads that the fine-tuned models have."""
    family, found = evaluator.family, []
    for task in evaluator.tasks.values():
        old = load_file(zoo / f"{task.name}.safetensors")
        features = torch.from_numpy(family.features(family.images(task, "test")))
        logits = functional.linear(features, old["fc.weight"], old["fc.bias"])
        found.append(float((logits.argmax(dim=1) == family.labels(task, "test")).float().mean()))
    return np.mean(found)


def test_recalibration_and_refitted_heads_both_matter(zoo, evaluator):
    both = values(evaluator.evaluate(HALF, split="test")).mean()
    recalibrated = accuracy_with_old_heads(zoo, evaluator)
    without = make_evaluator(zoo, recalibrate=False)
    refitted = values(without.evaluate(HALF, split="test")).mean()
    as_merged = accuracy_with_old_heads(zoo, without)
    assert both > recalibrated + 0.1
    assert refitted > as_merged + 0.1
    assert recalibrated > as_merged + 0.1
    assert both > as_merged + 0.3
    assert without.family.extras()[0] == {}
    # Sums of task vectors make variances negative, of which there is no square root.
    with pytest.raises(MapMergeError, match="not finite numbers: sample a smaller box"):
        without.evaluate([2, 2])
    assert np.isfinite(values(evaluator.evaluate([2, 2]))).all()


def test_equal_coefficients_have_equal_outcomes_whatever_was_measured_before(zoo):
    few = {"train_examples": 60, "calibration_examples": 60}
    evaluator = make_evaluator(zoo, **few)
    first = evaluator.evaluate(HALF)
    evaluator.evaluate([0, 1], ["Hues"], "test")
    again = evaluator.evaluate(HALF, precision="bfloat16")
    loaded = dict(outcomes_of(evaluator, evaluator.vectors.merge(HALF)))
    alone = make_evaluator(zoo, **few).evaluate(HALF, ["Hues"])
    for name, outcome in first.items():
        assert again[name].per_example == loaded[name].per_example == outcome.per_example
    assert alone["Hues"].per_example == first["Hues"].per_example


def test_other_metrics_and_fewer_training_images(zoo):
    stripes, hues = tasks_in(zoo)
    tasks = [Task("Stripes", stripes.data, (LOSS,)), hues]
    evaluator = make_evaluator(zoo, tasks, train_examples=40, calibration_examples=20)
    values = evaluator.evaluate(HALF, split="test")
    _, heads = evaluator.family.extras()
    images, labels = pixels(zoo, "Stripes", "test")
    logits = evaluator.family.model(images) @ heads["head-Stripes"]["weight"].T + heads["head-Stripes"]["bias"]
    expected = functional.cross_entropy(logits, torch.from_numpy(labels))
    assert values["Stripes"].value == pytest.approx(float(expected), rel=1e-4)
    fitted = evaluator.family._training(hues)[1]
    assert fitted.bincount().tolist() == [8] * 5
    assert len(evaluator.family._calibration_images()) == 40


def test_two_classes_and_classes_that_no_training_image_shows(zoo, tmp_path):
    write_data(tmp_path / "Stripes.npz", np.random.default_rng(1), "Stripes", n_classes=2)
    task = Task.from_file("Stripes", tmp_path / "Stripes.npz")
    evaluator = make_evaluator(zoo, [task])
    assert evaluator.evaluate(HALF)["Stripes"].value > 0.8
    head = evaluator.family.extras()[1]["head-Stripes"]
    assert head["weight"].shape == (4, 96)
    logits = evaluator.family.logits(evaluator.family.images(task, "test"), task, torch.float32)
    assert set(logits.argmax(dim=1).tolist()) == {0, 1}


def test_models_without_batchnorm_have_nothing_to_recalibrate(zoo, tmp_path):
    model = timm.create_model("test_convnext", num_classes=3)
    save_file(model.state_dict(), tmp_path / "pretrained.safetensors")
    family = ClassifierWithHeads(
        "test_convnext", tmp_path / "pretrained.safetensors", ClassifierWithHeads.Settings(image_size=SIZE)
    )
    without = ClassifierWithHeads.left_out("test_convnext", tmp_path)
    assert without == ("head.fc.weight", "head.fc.bias")
    base = tmp_path / "pretrained.safetensors"
    vectors = TaskVectors.from_files(base, {"only": base}, without=without)
    measured = Evaluator(family, vectors, tasks_in(zoo), device="cpu").evaluate([1])
    assert [outcome.n_examples for outcome in measured.values()] == [SPLITS["val"]] * 2
    statistics, heads = family.extras()
    assert statistics == {}
    assert heads["head-Hues"]["weight"].shape == (5, model.num_features)


@pytest.mark.parametrize("shape", [(160, 160, 3), (160, 160), (40, 28, 3), (200, 170, 3)])
def test_images_are_prepared_exactly_as_timm_does(zoo, tmp_path, shape):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in SPLITS:
        arrays[f"{split}_images"] = rng.integers(0, 256, (4, *shape), np.uint8)
        arrays[f"{split}_labels"] = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "data.npz", class_names=["a", "b"], templates=["{}"], **arrays)
    family = ClassifierWithHeads(ARCHITECTURE, zoo / "pretrained.safetensors")
    task = Task.from_file("data", tmp_path / "data.npz")
    transform = create_transform(**resolve_data_config({}, model=timm.create_model(ARCHITECTURE)))
    pictures = [Image.fromarray(image).convert("RGB") for image in arrays["val_images"]]
    expected = torch.stack([transform(picture) for picture in pictures])
    assert torch.equal(family.normalise(family.images(task, "val")), expected)


def test_a_folder_of_timm_brings_its_architecture_and_preprocessing(zoo, tmp_path):
    model = timm.create_model(ARCHITECTURE, num_classes=sum(CLASSES.values()))
    model.load_state_dict(load_file(zoo / "pretrained.safetensors"))
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 48, 48], "mean": [0.1] * 3, "std": [0.2] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ClassifierWithHeads(ARCHITECTURE, tmp_path).image_size == (48, 48)
    family = ClassifierWithHeads("", tmp_path)
    assert family.image_size == (48, 48)
    assert ClassifierWithHeads.left_out("", tmp_path) == ("fc.weight", "fc.bias")
    black = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    torch.testing.assert_close(family.normalise(black), torch.full((1, 3, 48, 48), -0.5))
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    with torch.inference_mode():
        expected = plain(torch.full((1, 3, 48, 48), -0.5))
    np.testing.assert_array_equal(family.features(black), expected)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet", "timm has no architecture 'resnet'"),
        ("hf-hub:timm/resnet18", "timm has no architecture 'hf-hub:timm/resnet18'"),
        ("resnet18.nothing", "can't build a classifier of images from resnet18.nothing: Invalid pretrained tag"),
        ("vit_tiny_patch16_224", r"images from vit_tiny_patch16_224: Input height \(32\) doesn't match model \(224\)"),
        ("test_efficientnet", "does not fit the architecture test_efficientnet: it lacks the tensor"),
    ],
)
def test_architectures_that_are_none_or_another(zoo, architecture, message):
    with pytest.raises(CheckpointError, match=message):
        ClassifierWithHeads(architecture, zoo / "pretrained.safetensors", ClassifierWithHeads.Settings(image_size=SIZE))


def test_models_of_gray_images(tmp_path):
    model = timm.create_model(ARCHITECTURE, in_chans=1)
    save_for_hf(model, str(tmp_path), model_args={"in_chans": 1}, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [1, 48, 48]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="it takes images of 1 channels, not of 3"):
        ClassifierWithHeads("", tmp_path)


def test_a_folder_without_timms_configuration(tmp_path):
    with pytest.raises(CheckpointError, match=r"can't build a classifier of images from .*: Config file not found"):
        ClassifierWithHeads("", tmp_path)
    with pytest.raises(CheckpointError, match="Config file not found"):
        ClassifierWithHeads.left_out("", tmp_path)


def test_checkpoints_that_do_not_fit(zoo, tmp_path):
    state_dict = load_file(zoo / "pretrained.safetensors")
    first = next(key for key in state_dict if key.endswith("conv1.weight"))
    save_file(state_dict | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file(state_dict | {first: torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    for name, message in [("more", "holds the tensor 'more'"), ("other", r"with shape \(3, 3\) where")]:
        with pytest.raises(CheckpointError, match=message):
            ClassifierWithHeads(ARCHITECTURE, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"train_examples": 1}, "can't have train_examples = 1: give a whole number of at least 2"),
        ({"calibration_examples": True}, "can't have calibration_examples = True: give a whole number of at"),
        ({"image_size": "32"}, "can't have image_size = '32': give a whole number of at least 2, or none"),
        ({"recalibrate": "no"}, "can't have recalibrate = 'no': give true or false"),
    ],
)
def test_settings_that_are_not_allowed(option, message):
    with pytest.raises(MapMergeError, match=message):
        find_family("classifier").make(ARCHITECTURE, Path("unread.safetensors"), option, [])


def test_datasets_that_heads_cannot_be_fitted_to(zoo, tmp_path):
    rng = np.random.default_rng(0)
    write_data(tmp_path / "one.npz", rng, "Stripes", {"train": 8, "val": 8, "test": 8}, n_classes=1)
    with np.load(tmp_path / "one.npz") as stored:
        rest = {key: value for key, value in stored.items() if not key.startswith("train")}
        np.savez(tmp_path / "none.npz", **rest)
    for name, message in [("none", "'Lines' has no train split"), ("one", "'Lines' shows one class only")]:
        evaluator = make_evaluator(zoo, [Task("Lines", DataSource(path=tmp_path / f"{name}.npz"))])
        with pytest.raises(DatasetError, match=message):
            evaluator.prepare()


def test_tasks_must_be_told_and_fit(zoo):
    family = ClassifierWithHeads(
        ARCHITECTURE, zoo / "pretrained.safetensors", ClassifierWithHeads.Settings(image_size=SIZE)
    )
    with pytest.raises(MapMergeError, match="name them with `use`"):
        family.merged(torch.float32)
    with pytest.raises(MapMergeError, match="perplexity"):
        family.use([Task("Stripes", tasks_in(zoo)[0].data, (PERPLEXITY,))])
