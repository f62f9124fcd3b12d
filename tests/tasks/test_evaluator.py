from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError, PointError
from mapmerge_core.tasks import evaluator as evaluator_module
from mapmerge_core.tasks.devices import choose_device, choose_devices, choose_precision
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.metrics.balanced_accuracy import BALANCED_ACCURACY
from mapmerge_core.tasks.metrics.f1 import F1_SCORE as F1
from mapmerge_core.tasks.metrics.perplexity import PERPLEXITY
from mapmerge_core.tasks.metrics.top5 import TOP5_ACCURACY
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.export.writing import Recipe, save_merged
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tasks.measuring import outcomes, outcomes_of
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

TASKS = tuple(CLASS_NAMES)
POINTS = [(0, 0, 0), (0, 1, 0), (0.3, 0.4, 0.2), (1.2, -0.3, 0.5)]


def make_evaluator(zoo, **options):
    family = ClipZeroShot(str(zoo / "tiny-clip.json"), zoo / "pretrained.safetensors")
    checkpoints = {task: zoo / f"{task}.safetensors" for task in TASKS}
    vectors = TaskVectors.from_files(zoo / "pretrained.safetensors", checkpoints, part=family.part)
    tasks = [Task.from_file(task, zoo / f"{task}.npz") for task in TASKS]
    return Evaluator(family, vectors, tasks, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo, precision="float32", batch_size=25)


def slowly(evaluator, zoo, c, split):
    """Which examples are right by way of a state dict, PIL, open_clip and NumPy."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(evaluator.vectors.merge(c))
    right = {}
    for task, class_names in CLASS_NAMES.items():
        arrays = np.load(zoo / f"{task}.npz")
        head = plain_head(model, class_names, arrays["templates"].tolist())
        with torch.inference_mode():
            logits = model.encode_image(plain_transform(arrays[f"{split}_images"], model), normalize=True) @ head
        right[task] = logits.argmax(1).numpy() == arrays[f"{split}_labels"]
    return right


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_example_agrees_with_the_slow_path(evaluator, tiny_zoo, split):
    for c in POINTS:
        outcomes = evaluator.evaluate(c, split=split)
        assert tuple(outcomes) == TASKS
        for task, right in slowly(evaluator, tiny_zoo, c, split).items():
            outcome = outcomes[task]
            assert np.unpackbits(np.frombuffer(outcome.per_example, np.uint8), count=60).tolist() == right.tolist()
            assert (outcome.value, outcome.n_examples) == (right.mean(), 60)
            assert outcome.seconds > 0


def test_every_fine_tuned_model_is_good_at_its_own_task(evaluator):
    values = np.array([[o.value for o in evaluator.evaluate(c).values()] for c in np.eye(3)])
    assert (np.diag(values) > 0.85).all()
    assert (values.argmax(axis=0) == [0, 1, 2]).all()


def by_hand(metric, logits, labels):
    """A classifier's metric from its logits (n x classes) by plain NumPy."""
    guesses, classes = logits.argmax(axis=1), np.unique(labels)
    if metric == ACCURACY:
        return np.mean(guesses == labels)
    if metric == TOP5_ACCURACY:
        ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        return np.mean(ranks < 5)
    if metric == LOSS:
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(labels)), labels].mean()
    recall = np.array([np.mean(guesses[labels == k] == k) for k in classes])
    if metric == BALANCED_ACCURACY:
        return recall.mean()
    found = [np.sum((guesses == k) & (labels == k)) for k in classes]
    return np.mean(
        [2 * hit / (np.sum(guesses == k) + np.sum(labels == k)) for hit, k in zip(found, classes, strict=True)]
    )


@pytest.mark.parametrize("metric", [ACCURACY, TOP5_ACCURACY, BALANCED_ACCURACY, F1, LOSS], ids=lambda m: m.name)
def test_every_metric_of_classifiers_is_that_of_plain_numpy(evaluator, tmp_path, metric):
    rng = np.random.default_rng(0)
    names = [f"{name} {word}" for name in CLASS_NAMES["Colours"] for word in ("light", "dark")]
    labels = {split: np.concatenate([np.arange(9), rng.integers(0, 4, 31)]) for split in ("val", "test")}
    images = {split: rng.integers(0, 256, (40, 16, 16, 3), np.uint8) for split in ("val", "test")}
    arrays = {f"{split}_images": images[split] for split in images}
    arrays |= {f"{split}_labels": labels[split] for split in labels}
    np.savez(tmp_path / "d.npz", class_names=names, templates=["{}"], **arrays)
    task = Task.from_file("Unbalanced", tmp_path / "d.npz", metric)
    measured = Evaluator(evaluator.family, evaluator.vectors, [task], device="cpu", batch_size=7)
    outcome = measured.evaluate(POINTS[2], split="test")["Unbalanced"]
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(evaluator.vectors.merge(POINTS[2]))
    with torch.inference_mode():
        features = model.encode_image(plain_transform(images["test"], model), normalize=True)
        logits = (features @ plain_head(model, names, ["{}"]) * model.logit_scale.exp()).double().numpy()
    assert outcome.value == pytest.approx(by_hand(metric, logits, labels["test"]), abs=1e-5)
    per_example = unpack(outcome.per_example, 40)
    assert per_example.dtype == (np.float32 if metric == LOSS else bool)
    if metric in (LOSS, TOP5_ACCURACY):
        assert per_example.mean() == pytest.approx(outcome.value, abs=1e-5)
    else:
        assert per_example.tolist() == (logits.argmax(axis=1) == labels["test"]).tolist()


def test_a_metric_that_a_family_cannot_measure_is_refused(evaluator, tiny_zoo):
    task = Task.from_file("Light", tiny_zoo / "Light.npz", PERPLEXITY)
    with pytest.raises(MapMergeError, match=r"'Light' can't be measured by perplexity .*: choose accuracy, "):
        Evaluator(evaluator.family, evaluator.vectors, [task], device="cpu")


def test_bfloat16_agrees_but_for_a_few_examples_and_test_is_always_float32(tiny_zoo, evaluator):
    low = make_evaluator(tiny_zoo, precision="bfloat16")
    assert low.precision == "bfloat16"
    for c in POINTS:
        exact = evaluator.evaluate(c)
        for task, outcome in low.evaluate(c).items():
            assert abs(outcome.value - exact[task].value) <= 3 / 60
        for task, outcome in low.evaluate(c, precision="float32").items():
            assert outcome.per_example == exact[task].per_example
        tested = low.evaluate(c, split="test")
        assert {t: o.per_example for t, o in tested.items()} == {
            t: o.per_example for t, o in evaluator.evaluate(c, split="test").items()
        }


def test_evaluating_again_and_in_another_order_gives_the_same(evaluator):
    first = [evaluator.evaluate(c) for c in POINTS]
    again = [evaluator.evaluate(c) for c in POINTS[::-1]][::-1]
    for one, other in zip(first, again, strict=True):
        assert {t: o.per_example for t, o in one.items()} == {t: o.per_example for t, o in other.items()}
    some = evaluator.evaluate(POINTS[2], ["Light", "Colours"])
    assert list(some) == ["Light", "Colours"]
    assert some["Light"].per_example == first[2]["Light"].per_example


def bits(measured):
    return {task: (outcome.value, outcome.per_example) for task, outcome in measured}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_any_state_dict_is_measured_as_the_same_coefficients_are(tiny_zoo, precision, split):
    evaluator = make_evaluator(tiny_zoo, precision=precision)
    expected = [bits(outcomes(make_evaluator(tiny_zoo, precision=precision), c, split=split)) for c in POINTS]
    for c, values in zip(POINTS, expected, strict=True):
        assert bits(outcomes_of(evaluator, evaluator.vectors.merge(c), split=split)) == values
    for c, values in zip(POINTS[::-1], expected[::-1], strict=True):
        assert bits(outcomes(evaluator, c, split=split)) == values
        assert bits(
            outcomes_of(evaluator, evaluator.vectors.merge([0.1, 0.9, 0.4]), tasks=["Light"], split=split)
        ).keys() == {"Light"}


def test_a_model_from_elsewhere_leaves_no_trace(tiny_zoo, evaluator):
    expected = [bits(outcomes(evaluator, c, split=split)) for split in ("val", "test") for c in POINTS]
    other = {name: torch.zeros_like(tensor) for name, tensor in evaluator.vectors.merge([0, 0, 0]).items()}
    for split in ("val", "test"):
        for task, (value, _) in bits(outcomes_of(evaluator, other, split=split)).items():
            first_class = np.load(tiny_zoo / f"{task}.npz")[f"{split}_labels"] == 0
            assert value == first_class.mean()  # a model of zeros ties all classes
    found = [bits(outcomes(evaluator, c, split=split)) for split in ("val", "test") for c in POINTS]
    assert found == expected


def test_a_model_from_elsewhere_leaves_no_trace_where_vectors_are_held_twice(tiny_zoo):
    """As on a GPU: two `TaskVectors` know one model, and a tensor of the part is not theirs to merge."""
    pretrained = load_file(tiny_zoo / "pretrained.safetensors")
    finetuned = {task: load_file(tiny_zoo / f"{task}.safetensors") for task in TASKS}
    for model in finetuned.values():
        model["visual.proj"] = pretrained["visual.proj"]
    one = make_evaluator(tiny_zoo)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, part="visual.")
    evaluator = Evaluator(
        one.family, vectors, list(one.tasks.values()), device="cpu", precision="bfloat16", batch_size=25
    )
    evaluator.exported_vectors = TaskVectors.from_state_dicts(pretrained, finetuned, part="visual.")

    def measure():
        return [bits(outcomes(evaluator, POINTS[2], split=s, precision="bfloat16")) for s in ("val", "test")]

    expected = measure()
    other = vectors.merge(POINTS[2]) | {"visual.proj": -pretrained["visual.proj"]}
    for split, values in zip(("val", "test"), expected, strict=True):
        assert bits(outcomes_of(evaluator, other, split=split, precision="bfloat16")) != values
        assert measure() == expected


def test_images_are_read_once(tmp_path, tiny_zoo):
    evaluator = make_evaluator(tiny_zoo)
    copy = tmp_path / "Light.npz"
    copy.write_bytes((tiny_zoo / "Light.npz").read_bytes())
    evaluator = Evaluator(evaluator.family, evaluator.vectors, [Task.from_file("Light", copy)], device="cpu")
    evaluator.prepare()
    copy.unlink()
    assert evaluator.evaluate([0, 0, 1])["Light"].n_examples == 60


def test_the_precision_is_chosen_once_for_a_process():
    assert choose_precision("cpu") in ("float32", "bfloat16")
    assert choose_precision("cpu") == choose_precision("cpu")
    assert choose_precision("mps") == "float32"


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    with pytest.raises(MapMergeError, match=r"no device 'cuda:99' here: choose auto or one of .*cpu\.$"):
        choose_device("cuda:99")


def test_several_devices(monkeypatch):
    assert choose_devices("cpu") == [torch.device("cpu")]
    assert choose_devices("auto")[0].type == choose_device("auto").type
    with pytest.raises(MapMergeError, match="'cpu' is named twice: name each once"):
        choose_devices("cpu, cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [str(device) for device in choose_devices("auto")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(device) for device in choose_devices("cuda:2,cuda")] == ["cuda:2", "cuda"]
    with pytest.raises(MapMergeError, match="'cuda' is named twice"):
        choose_devices("cuda,cuda:0")
    with pytest.raises(MapMergeError, match="no device 'cuda:3' here"):
        choose_devices("cuda:0,cuda:3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_the_cpu(tiny_zoo, evaluator):
    on_gpu = make_evaluator(tiny_zoo, device="cuda", precision="float32")
    for c in POINTS:
        for task, outcome in on_gpu.evaluate(c).items():
            assert abs(outcome.value - evaluator.evaluate(c)[task].value) <= 1 / 60


def assert_weights_are_the_exported(evaluator, c):
    exported = evaluator.vectors.to("cpu").merge(c)
    for name, tensor in evaluator.family.model.state_dict().items():
        assert torch.equal(tensor.cpu().to(exported[name].dtype), exported[name]), name
        assert torch.equal(tensor.cpu(), exported[name].to(tensor.dtype)), name


def test_the_weights_measured_on_the_test_split_are_the_exported_bit_by_bit(evaluator):
    for c in POINTS:
        evaluator.evaluate(c[::-1])
        evaluator.evaluate(c, split="test")
        assert_weights_are_the_exported(evaluator, c)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_exported_weights_on_the_test_split(tiny_zoo):
    on_gpu = make_evaluator(tiny_zoo, device="cuda", precision="float32")
    for c in POINTS:
        on_gpu.evaluate(c[::-1])
        on_gpu.evaluate(c, split="test")
        assert_weights_are_the_exported(on_gpu, c)


def test_on_a_cpu_the_task_vectors_are_held_once(evaluator):
    again = Evaluator(evaluator.family, evaluator.vectors, list(evaluator.tasks.values()), device="cpu")
    assert again.vectors is evaluator.vectors


def test_what_can_not_be_measured(tiny_zoo, evaluator):
    with pytest.raises(DatasetError, match="no task 'Lights': choose from Colours, Stripes, Light"):
        evaluator.evaluate([0, 0, 0], ["Lights"])
    with pytest.raises(DatasetError, match="no split 'train'"):
        evaluator.evaluate([0, 0, 0], split="train")
    with pytest.raises(PointError, match=r"shape \(2,\)"):
        evaluator.evaluate([0, 0])
    tower = evaluator.vectors.merge([0, 0, 0])
    del tower["visual.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"The model lacks the tensor 'visual\.conv1\.weight'"):
        next(outcomes_of(evaluator, tower))
    with pytest.raises(MapMergeError, match="no precision 'float8': choose auto or one of float32, bfloat16"):
        make_evaluator(tiny_zoo, precision="float8")
    task = evaluator.tasks["Light"]
    with pytest.raises(DatasetError, match="Two tasks are named 'Light'"):
        Evaluator(evaluator.family, evaluator.vectors, [task, task], device="cpu")
    whole = TaskVectors.from_files(tiny_zoo / "pretrained.safetensors", {"a": tiny_zoo / "pretrained.safetensors"})
    with pytest.raises(CheckpointError, match=r"merges 'visual\.'"):
        Evaluator(evaluator.family, whole, [task], device="cpu")


@pytest.mark.parametrize("split", ["val", "test"])
def test_batches_become_smaller_when_the_memory_is_full(tiny_zoo, evaluator, split):
    small, most, seen = make_evaluator(tiny_zoo, precision="float32", batch_size=50), 20, []

    def run_out(_, inputs, __):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    small.family.model_in(torch.float32).visual.register_forward_hook(run_out)
    found, expected = (each.evaluate(POINTS[2], split=split) for each in (small, evaluator))
    for task in TASKS:
        assert found[task].value == expected[task].value
        assert found[task].per_example == expected[task].per_example
    assert max(seen) == 50
    assert seen.count(50) == seen.count(25) == 1, "what was too large is not tried again"
    most = 0
    with pytest.raises(MapMergeError, match="runs out of memory, however few examples pass at once: close"):
        small.evaluate(POINTS[1], split=split)


@pytest.mark.parametrize(("fast", "chosen"), [(64, 64), (256, 256), (None, 256)])
def test_the_batch_size_is_what_turns_out_to_be_clearly_faster(tmp_path, tiny_zoo, monkeypatch, fast, chosen):
    arrays = dict(np.load(tiny_zoo / "Stripes.npz"))
    arrays |= {
        name: np.repeat(array, 5, axis=0) for name, array in arrays.items() if name.startswith(("val_", "test_"))
    }
    np.savez(tmp_path / "large.npz", **arrays)
    made = make_evaluator(tiny_zoo, precision="float32")
    task = Task.from_file("Large", tmp_path / "large.npz")
    evaluator = Evaluator(made.family, made.vectors, [task], device="cpu", precision="float32")
    n, seen, now = len(arrays["val_labels"]), [], 0.0
    monkeypatch.setattr(evaluator_module, "time", SimpleNamespace(perf_counter=lambda: now))

    def seconds(size):
        return (0.0001 if fast == size else 0.0005) * size

    def take_time(_, inputs, __):
        nonlocal now
        seen.append(len(inputs[0]))
        now += seconds(len(inputs[0]))

    evaluator.family.model_in(torch.float32).visual.register_forward_hook(take_time)
    outcome = evaluator.evaluate(POINTS[1])["Large"]
    trials, seen[:] = seen[:6], seen[6:]
    assert trials == [256, 64] * 3
    assert seen == [chosen] * (n // chosen) + [n % chosen]
    assert outcome.seconds == pytest.approx(sum(map(seconds, seen))), "trials don't count"
    seen.clear()
    evaluator.evaluate(POINTS[2], split="test")
    assert seen == [256, n - 256], "what is reported has the usual batches"
    seen.clear()
    evaluator.evaluate(POINTS[2])
    assert seen == [chosen] * (n // chosen) + [n % chosen], "it is tried once"


PLAIN_OPEN_CLIP = """
import sys, numpy as np, open_clip, torch
from PIL import Image
from open_clip.zero_shot_classifier import build_zero_shot_classifier
folder, data = sys.argv[1:]
open_clip.add_model_config(folder + "/merged.json")
weights = folder + "/merged.safetensors"
model, _, preprocess = open_clip.create_model_and_transforms("merged", pretrained=weights)
tokenizer = open_clip.get_tokenizer("merged")
model.eval()
with torch.no_grad():
    for name in ("Colours", "Stripes", "Light"):
        d = np.load(f"{data}/{name}.npz")
        texts = d["class_names"].tolist(), d["templates"].tolist()
        head = build_zero_shot_classifier(model, tokenizer, *texts)
        images = torch.stack([preprocess(Image.fromarray(image)) for image in d["test_images"]])
        right = (model.encode_image(images, normalize=True) @ head).argmax(1).numpy() == d["test_labels"]
        print(right.mean())
assert "mapmerge_core" not in sys.modules
"""


def test_an_exported_model_scores_in_plain_open_clip_exactly_what_was_measured(tmp_path, tiny_zoo):
    evaluator = make_evaluator(tiny_zoo)
    c = [0.5, 0.45, 0.3]
    measured = [outcome.value for outcome in evaluator.evaluate(c, split="test").values()]
    recipe = Recipe(architecture=str(tiny_zoo / "tiny-clip.json"))
    save_merged(tmp_path / "merged.safetensors", evaluator.vectors, c, recipe=recipe)
    ran = subprocess.run(
        [sys.executable, "-c", PLAIN_OPEN_CLIP, str(tmp_path), str(tiny_zoo)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert [float(line) for line in ran.stdout.split()] == measured
