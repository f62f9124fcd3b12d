"""What every registered merge does, whoever wrote it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import open_clip
import pytest
import torch

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError, PointError, SettingError
from mapmerge_core.merges.base import StudyFacts, obstacle
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import fields_of, to_dict
from mapmerge_core.tasks.objective import objectives_of
from mapmerge_core.weights.io.checkpoints import read_state_dict
from mapmerge_core.weights.vectors.streamed import StreamedVectors
from tests.merges.helpers import TASKS, make_evaluator
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

QUICK = {"steps": 3, "rank": 2, "batch_size": 8, "examples": 20}
ALL = pytest.mark.parametrize("name", MERGES.names)
WITH_STATE = pytest.mark.parametrize("name", [merge.name for merge in MERGES if merge.has_state])
TRAINED = pytest.mark.parametrize("name", [merge.name for merge in MERGES if merge.is_trained])


def make(name, **settings):
    """A merge with settings that make its preparation short."""
    fields = {field.name for field in fields_of(MERGES[name].Settings)}
    return MERGES[name]({key: value for key, value in QUICK.items() if key in fields} | settings)


@pytest.fixture(scope="module")
def evaluators(tiny_zoo):
    return {n: make_evaluator(tiny_zoo, TASKS[:n]) for n in (1, 2, 3)}


@pytest.fixture(scope="module")
def evaluator_of(evaluators):
    return lambda name: evaluators[MERGES[name].needs.n_models or 3]


@pytest.fixture(scope="module")
def prepared_of(evaluator_of):
    """Each merge as prepared once."""
    prepared = {}

    def get(name):
        if name not in prepared:
            prepared[name] = make(name).prepare(evaluator_of(name))
        return prepared[name]

    return get


def points_of(space):
    drawn = space.sample(2, np.random.default_rng(0)) if space.n_free else []
    return [space.default, *space.anchors[:2], *drawn]


def facts_of(evaluator):
    tasks = evaluator.tasks.values()
    return StudyFacts(
        evaluator.vectors.names,
        objectives_of(tasks),
        tasks_with_data=frozenset(task.name for task in tasks),
        gives_logits=evaluator.family.gives_logits,
    )


def model_at(prepared, x):
    return dict(prepared.tensors(x))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


@ALL
def test_it_describes_itself(name):
    merge = MERGES[name]
    assert name == merge.name
    assert name.isidentifier()
    assert merge.title
    assert merge.help().endswith(".")
    assert len(merge.help()) <= 110
    for field in fields_of(merge.Settings):
        assert field.help.endswith("."), field.name
        assert not field.is_required, field.name
    assert merge(to_dict(merge().settings)).settings == merge().settings
    with pytest.raises(SettingError, match="has no setting 'nonsense'"):
        merge({"nonsense": 1})
    for settings in merge.variants:
        assert merge(settings).label.startswith(merge.title)


def test_no_merge_loads_torch_before_it_is_used():
    code = (
        "import sys; from mapmerge_core.registries import MERGES; list(MERGES);"
        "[merge().space(('a', 'b')) for merge in MERGES]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@ALL
def test_its_space_has_named_coordinates_and_holds_its_default(name, evaluator_of):
    models = evaluator_of(name).vectors.names
    merge = make(name)
    space = merge.space(models)
    assert len(space.names) == len(set(space.names)) == space.n == len(space.default)
    assert space.contains(space.default[None]).all()
    assert np.array_equal(space.point(space.default), space.default)
    assert space.points(space.anchors).shape == space.anchors.shape
    assert merge.space(models).to_dict() == space.to_dict()
    for title, x in merge.baselines(models):
        assert title.startswith(merge.title)
        assert space.contains(x[None]).all()


@ALL
def test_a_module_holds_what_an_export_writes(name, evaluator_of, prepared_of):
    evaluator, prepared = evaluator_of(name), prepared_of(name)
    module = evaluator.family.model_in(torch.float32)
    described = evaluator.exported_vectors.described
    for x in points_of(prepared.space):
        exported = model_at(prepared, x)
        assert list(exported) == list(described)
        assert {key: (t.shape, t.dtype) for key, t in exported.items()} == described
        assert all(tensor.device.type == "cpu" for tensor in exported.values())
        expected = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in exported.items()}
        # What others wrote before must not show: neither in the tensors merged nor in the others.
        evaluator.vectors.merge_into(module, np.full(len(evaluator.vectors), 0.7))
        prepared.write_exact(module, x)
        assert_equal(dict(module.state_dict()), expected)
        evaluator.vectors.merge_into(module, np.full(len(evaluator.vectors), 0.7))
        prepared.write(module, x)
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], rtol=2e-3, atol=1e-3)
        prepared.write(module, x)
        assert evaluator.family.model_in(torch.float32) is module


@ALL
def test_modules_in_bfloat16_hold_the_same_rounded(name, evaluator_of, prepared_of):
    prepared = prepared_of(name)
    module = copy.deepcopy(evaluator_of(name).family.model_in(torch.float32)).to(torch.bfloat16)
    for x in points_of(prepared.space)[-2:]:
        prepared.write(module, x)
        state = module.state_dict()
        for key, tensor in model_at(prepared, x).items():
            expected = tensor.bfloat16() if tensor.is_floating_point() else tensor
            torch.testing.assert_close(state[key], expected, rtol=1e-2, atol=1e-3)


@ALL
def test_what_is_measured_is_what_an_export_scores(name, tiny_zoo, evaluator_of, prepared_of):
    evaluator, prepared = evaluator_of(name), prepared_of(name)
    x = points_of(prepared.space)[-1]
    outcomes = dict(evaluator.outcomes((prepared, x), split="test"))
    exported = open_clip.CLIP(**ARCHITECTURE).eval()
    exported.load_state_dict(model_at(prepared, x))
    for objective in evaluator.objectives:
        arrays = np.load(tiny_zoo / f"{objective.task}.npz")
        head = plain_head(exported, CLASS_NAMES[objective.task], arrays["templates"].tolist())
        with torch.inference_mode():
            images = plain_transform(arrays["test_images"], exported)
            predicted = (exported.encode_image(images, normalize=True) @ head).argmax(dim=1).numpy()
        assert outcomes[objective.key].value == (predicted == arrays["test_labels"]).mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@ALL
def test_a_gpu_writes_nearly_what_an_export_holds(name, tiny_zoo):
    models = TASKS[: MERGES[name].needs.n_models or 3]
    evaluator = make_evaluator(tiny_zoo, models, device="cuda")
    prepared = make(name).prepare(evaluator)
    module = evaluator.family.model_in(torch.float32)
    for x in points_of(prepared.space):
        for write in (prepared.write, prepared.write_exact):
            write(module, x)
            state = module.state_dict()
            for key, tensor in model_at(prepared, x).items():
                torch.testing.assert_close(state[key].cpu(), tensor.to(state[key].dtype), rtol=2e-3, atol=1e-3)


@ALL
def test_points_matter_and_come_out_the_same_again(name, prepared_of):
    prepared = prepared_of(name)
    points = points_of(prepared.space)
    models = [model_at(prepared, x) for x in points]
    for x, model in zip(reversed(points), reversed(models), strict=True):
        assert_equal(model_at(prepared, x), model)
    if prepared.space.n:
        assert any(not torch.equal(tensor, models[-1][key]) for key, tensor in models[-2].items())


@ALL
def test_the_same_settings_prepare_the_same_bits(name, evaluator_of, prepared_of):
    prepared, again = prepared_of(name), make(name).prepare(evaluator_of(name))
    for x in points_of(prepared.space)[-2:]:
        assert_equal(model_at(again, x), model_at(prepared, x))


@ALL
def test_what_was_kept_is_loaded_to_the_same_bits(name, evaluator_of, prepared_of, tmp_path):
    merge, evaluator, prepared = make(name), evaluator_of(name), prepared_of(name)
    state = tmp_path / "state.safetensors" if merge.has_state else None
    if state is not None:
        prepared.save(state)
    loaded = merge.load(state, evaluator.vectors, evaluator.exported_vectors)
    assert loaded.space.to_dict() == prepared.space.to_dict()
    for x in points_of(prepared.space):
        assert_equal(model_at(loaded, x), model_at(prepared, x))


@WITH_STATE
def test_files_that_are_no_state_of_it_are_refused(name, evaluator_of, prepared_of, tmp_path):
    merge, evaluator = make(name), evaluator_of(name)
    vectors = evaluator.vectors, evaluator.exported_vectors
    missing, file = tmp_path / "missing.safetensors", tmp_path / "state.safetensors"
    for state in (None, missing):
        with pytest.raises(CheckpointError, match=r"is gone.*prepare it again"):
            merge.load(state, *vectors)
    prepared_of(name).save(file)
    for content in (file.read_bytes()[:-40], b"", b"\x00" * 50):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"prepare .* again"):
            merge.load(file, *vectors)
    with pytest.raises(CheckpointError):
        merge.load(tmp_path, *vectors)


@ALL
def test_wrong_points_are_refused(name, evaluator_of, prepared_of):
    prepared, n = prepared_of(name), prepared_of(name).space.n
    module = evaluator_of(name).family.model_in(torch.float32)
    wrong = [np.full(n + 1, 0.5), np.full((1, n), 0.5), np.full(max(n, 1), np.nan), np.full(max(n, 1), np.inf)]
    for x in wrong:
        for use in (prepared.tensors, lambda x: prepared.write(module, x), lambda x: prepared.write_exact(module, x)):
            with pytest.raises(PointError):
                use(x)


@ALL
def test_its_coefficients_give_the_model(name, evaluator_of, prepared_of):
    prepared, vectors = prepared_of(name), evaluator_of(name).exported_vectors
    for x in points_of(prepared.space):
        c = prepared.coefficients(x)
        if c is not None:
            model = vectors.merge(c) if c.ndim == 1 else vectors.merge_layers(c)
            assert_equal(model_at(prepared, x), model)


@ALL
def test_it_leaves_the_study_as_it_was(name, evaluator_of):
    evaluator = evaluator_of(name)
    c = np.linspace(0.2, 0.4, len(evaluator.vectors))

    def measured():
        return {key: (outcome.value, outcome.per_example) for key, outcome in evaluator.evaluate(c).items()}

    before, model = measured(), evaluator.exported_vectors.merge(c)
    prepared = make(name).prepare(evaluator)
    prepared.write(evaluator.family.model_in(torch.float32), prepared.space.default)
    assert measured() == before
    assert_equal(evaluator.exported_vectors.merge(c), model)
    assert not any(p.requires_grad or p.grad is not None for p in evaluator.family.model.parameters())


@ALL
def test_studies_that_it_can_not_serve_are_refused(name, evaluators, evaluator_of):
    merge, facts = make(name), facts_of(evaluator_of(name))
    merge.check(facts)
    needs = merge.needs
    assert bool(obstacle(merge, replace(facts, in_low_rank=True))) == needs.whole_models
    assert bool(obstacle(merge, replace(facts, vectors="bfloat16"))) == needs.whole_models
    assert bool(obstacle(merge, replace(facts, gives_logits=False))) == needs.logits
    assert bool(obstacle(merge, replace(facts, tasks_with_data=frozenset()))) == needs.data
    for n, evaluator in evaluators.items():
        sentence = obstacle(merge, facts_of(evaluator))
        assert bool(sentence) == (needs.n_models not in (None, n)) or "at least two models" in sentence
    if needs.data and needs.logits:
        evaluator = make_evaluator_without_own_tasks(evaluators[3])
        with pytest.raises(MapMergeError, match="has no task of its own with examples"):
            merge.prepare(evaluator)


def make_evaluator_without_own_tasks(evaluator):
    class Other:
        def __getattr__(self, name):
            return getattr(evaluator, name)

    other = Other()
    other.tasks = {name: replace(task, model=None) for name, task in evaluator.tasks.items()}
    return other


@pytest.mark.parametrize("name", [merge.name for merge in MERGES if not merge.needs.whole_models])
def test_sums_of_any_task_vectors_will_do(name, tiny_zoo, evaluator_of):
    evaluator, merge = evaluator_of(name), make(name)
    models = {task: read_state_dict(tiny_zoo / f"{task}.safetensors") for task in TASKS}
    pretrained = read_state_dict(tiny_zoo / "pretrained.safetensors")
    on_disk = StreamedVectors.from_state_dicts(pretrained, models, part="visual.")
    streamed = merge.load(None, on_disk, on_disk)
    for x in points_of(streamed.space):
        expected = merge.load(None, evaluator.vectors, evaluator.exported_vectors)
        assert_equal(model_at(streamed, x), model_at(expected, x))


@WITH_STATE
def test_a_stop_ends_a_preparation_and_progress_reaches_its_end(name, evaluator_of):
    evaluator, cancel, seen = evaluator_of(name), Event(), []

    def stop(done, total):
        seen.append((done, total))
        cancel.set()

    with pytest.raises(Cancelled):
        make(name).prepare(evaluator, cancel=cancel, progress=stop)
    assert seen[0][0] < seen[0][1]
    seen.clear()
    make(name).prepare(evaluator, progress=lambda *args: seen.append(args))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


@TRAINED
def test_a_training_resumes_to_the_same_end_and_says_how_it_goes(name, evaluator_of, prepared_of, tmp_path):
    evaluator, checkpoint, cancel, points = evaluator_of(name), tmp_path / "checkpoint", Event(), []
    with pytest.raises(Cancelled):
        make(name).prepare(
            evaluator, cancel=cancel, progress=lambda *_: cancel.set(), checkpoint=checkpoint, report=points.append
        )
    assert checkpoint.exists()
    assert [point.step for point in points] == [1]
    resumed = make(name).prepare(evaluator, checkpoint=checkpoint, report=points.append)
    assert [point.step for point in points] == [1, 2, 3]
    for x in points_of(resumed.space):
        assert_equal(model_at(resumed, x), model_at(prepared_of(name), x))
    with pytest.raises(CheckpointError, match="with other settings: delete it"):
        make(name, seed=7).prepare(evaluator, checkpoint=checkpoint)
    checkpoint.write_bytes(b"")
    with pytest.raises(CheckpointError, match="can't be read"):
        make(name).prepare(evaluator, checkpoint=checkpoint)


@ALL
def test_it_says_what_preparation_costs(name, evaluator_of):
    merge = make(name)
    assert merge.passes([60, 60, 60]) >= 0
    assert (merge.time_preparation(evaluator_of(name)) > 0) == merge.is_trained
    assert merge.has_state or merge.passes([60]) == 0


NEWCOMER = '''
"""A merge of another package."""
from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import setting, settings

@register
class Rounded(LinearMerge):
    """Round what fine-tuning changed to multiples of a step."""

    name, title, source = "rounded", "Rounded", "nobody, nowhere"

    @settings
    class Settings:
        step: float = setting(0.5, above=0, help="What is rounded to.")

    def transform(self, change):
        return (change / self.settings.step).round_() * self.settings.step
'''
TRIAL = """
import torch
from mapmerge_core.merges.base import StudyFacts, applicable
from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

assert "rounded" in MERGES.names
assert "rounded" in [merge.name for merge in applicable(StudyFacts(("a", "b")))]
base, tuned = torch.zeros(3), torch.tensor([0.3, -0.9, 1.2])
vectors = TaskVectors.from_state_dicts({"w": base}, {"a": {"w": tuned}, "b": {"w": 2 * tuned}})
merge = MERGES["rounded"]({"step": 1.0})
print(merge.label, dict(merge.load(None, vectors, vectors).tensors([1, 0.5]))["w"].tolist())
"""


def test_one_file_of_another_package_adds_a_merge(tmp_path):
    (tmp_path / "newcomer.py").write_text(NEWCOMER)
    metadata = tmp_path / "newcomer-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mapmerge.merges]\nrounded = newcomer\n")
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "Rounded (step 1) [0.5, -2.0, 2.0]"
