"""What every registered family must say and do before and after its libraries are imported."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from mapmerge_core.errors import MapMergeError, RegistryError, SettingError
from mapmerge_core.registries import FAMILIES, METRICS
from mapmerge_core.settings import fields_of
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.families._models.images import ImageClassifier
from mapmerge_core.tasks.families.base import Family
from mapmerge_core.tasks.metrics import ACCURACY, LOSS, Metric
from mapmerge_core.tasks.metrics.base import Predictions
from mapmerge_core.tasks.task import Task

FACTS = ("name", "title", "examples", "metrics", "gives", "needs_architecture", "gives_logits", "part")


@pytest.fixture(params=FAMILIES.names)
def family(request):
    return FAMILIES[request.param]


def test_it_says_what_it_is(family):
    assert find_family(family.name) is family
    assert family.title
    assert family.help().endswith(".")
    assert family.examples in ("images", "texts", None)
    assert all(hasattr(Predictions, what) or what == "tokens" for what in family.gives)
    assert all(field.help.endswith(".") for field in fields_of(family.Settings))


def test_what_it_says_is_true_of_the_class_that_holds_a_model(family):
    loaded = family.loaded()
    assert issubclass(loaded, family)
    assert not inspect.isabstract(loaded)
    assert {fact: getattr(loaded, fact) for fact in FACTS} == {fact: getattr(family, fact) for fact in FACTS}
    assert loaded.Settings is family.Settings
    if family.gives_logits:
        assert issubclass(loaded, ImageClassifier)
    assert family.has_extras() == (loaded.extras is not Family.extras)


def test_it_can_measure_what_it_gives_and_refuses_the_rest(family):
    measurable = family.measurable()
    assert family.usual_metric() == (measurable[0] if measurable else None)
    assert len(set(measurable)) == len(measurable)
    for metric in METRICS:
        assert family.can_measure(metric) == (metric in measurable)
    own = Metric("made up", maximize=True)
    assert not family.can_measure(own)

    class Bare(family):
        model_in = prepare = measure = lambda *_: None

    Bare().use([Task("Cars", None, measurable)])
    with pytest.raises(MapMergeError) as caught:
        Bare().use([Task("Cars", None, (own,))])
    names = ", ".join(metric.name for metric in measurable)
    expected = f"'Cars' can't be measured by made up with this family of models: choose {names}."
    assert str(caught.value) == expected


def test_its_settings_are_checked_before_anything_is_read(family):
    family.check_options({})
    with pytest.raises(SettingError, match=r"has no setting 'colour': (it has|there is nothing to set)"):
        family.check_options({"colour": 1})
    for field in fields_of(family.Settings):
        with pytest.raises(SettingError, match=f"can't have {field.name} = "):
            family.check_options({field.name: object})
    with pytest.raises(SettingError):
        family.make("", Path("unread"), {"colour": 1}, [])


def test_a_checkpoint_that_is_missing_is_one_sentence(family, tmp_path):
    with pytest.raises(MapMergeError) as caught:
        family.make("", tmp_path / "nothing", {}, [])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_names_of_families():
    assert find_family("clip").usual_metric() == ACCURACY
    assert find_family("language").usual_metric() == LOSS
    own = find_family("mine:measure")
    assert own is find_family("mine:measure")
    assert (own.name, own.title, own.examples) == ("mine:measure", "mine:measure", None)
    assert (own.usual_metric(), own.measurable()) == (None, ())
    own.check_options({"anything": 1})
    for name in ("klip", "mine", "mine:", "a b:c", "/etc/x:y"):
        with pytest.raises(RegistryError, match=r"no family of models '.*': choose .*, or name your own as"):
            find_family(name)


def test_what_is_not_on_pythons_path_is_said(tmp_path):
    for name, says in (
        ("no_such_module:f", "The module 'no_such_module' of 'no_such_module:f' is not on Python's path"),
        ("json:no_such_function", "The module 'json' has no 'no_such_function'"),
        ("json:decoder", "'json:decoder' is no function and no family of models"),
        ("pathlib:Path", "'pathlib:Path' is no function and no family of models"),
    ):
        with pytest.raises(MapMergeError, match=says):
            find_family(name).make("", tmp_path, {}, [])


def test_hooks_of_open_clips_own_weights():
    class OpenClip:
        is_open_clip = True
        parts = ("ViT-B-16-SigLIP", "", "webli")

    clip = find_family("clip")
    options = clip.options_for(OpenClip())
    assert options == {"tag": "ViT-B-16-SigLIP/webli"}
    assert clip.options_for(Path("x")) == {}
    assert clip.preprocessing("ViT-B-16-SigLIP", options)["mean"] == [0.5, 0.5, 0.5]
    assert clip.preprocessing("a.json", options) == clip.preprocessing("ViT-B-32", {}) == {}


def test_what_an_export_looks_like(tmp_path):
    config = tmp_path / "open_clip_config.json"
    assert find_family("clip").exported_like(str(config), tmp_path) == config
    assert find_family("clip").exported_like("ViT-B-32", tmp_path) is None
    language = find_family("language")
    assert language.exported_like("", tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert language.exported_like("", tmp_path) == tmp_path


def test_images_are_normalised_in_float32_whatever_other_threads_build():
    class Plain(ImageClassifier):
        head = logits = class_logits = lambda *_: None

        def model_in(self, _dtype):
            return torch.nn.Module()

    torch.set_default_dtype(torch.bfloat16)  # as transformers does, for all threads, while it builds a model
    try:
        family = Plain((2, 2), (), "", [0.481] * 3, [0.269] * 3)
    finally:
        torch.set_default_dtype(torch.float32)
    black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    torch.testing.assert_close(family.normalise(black), torch.full((1, 3, 2, 2), -0.481 / 0.269))
