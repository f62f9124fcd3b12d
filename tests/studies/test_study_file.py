"""Studies as YAML files: what they say, how they are wrong, and running them."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image

from mapmerge_core.__main__ import main
from mapmerge_core.errors import DatasetError, StudyError
from mapmerge_core.methods.catalogue import default_points
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.inputs.downloading import download_text, downloads
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec, Transform
from mapmerge_core.studies.store.store import Store
from mapmerge_core.studies.config.study_file import (
    StudyFile,
    parse_study,
    read_study_file,
    study_text,
    write_study_file,
)
from mapmerge_core.studies.config.study_schema import MethodFields, TrainingFields
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metric import F1, Metric
from mapmerge_core.weights.io.hub import Download, HubRef

SHIPPED = sorted((Path(__file__).parents[2] / "assets" / "studies").glob("*.yaml"))

STUDY = """\
name: Two tasks
architecture: ViT-B-32
pretrained: openclip://ViT-B-32/openai
transform: {kind: ties, keep: 0.3}
tasks:
  - name: SUN397
    checkpoint: hf://someone/clip_sun397
    data: {path: "hf://datasets/someone/sun397", splits: {val: train}, templates: sun397, limit: 2000}
  - name: Cars
    checkpoint: cars/model.pt
    data: cars.npz
    metric: {name: BLEU, maximize: true, low: 0, high: 100}
method: {name: bayesian, points: 30, seed: 7, high: 0.6}
"""


def test_a_study_file_says_what_a_study_is(tmp_path):
    study = parse_study(STUDY, tmp_path)
    hub = DataSource(
        path="hf://datasets/someone/sun397", splits={"val": "train"}, templates="sun397", limit=2000
    )
    assert study == StudyFile(
        name="Two tasks",
        spec=StudySpec(
            architecture="ViT-B-32",
            pretrained=HubRef("openclip://ViT-B-32/openai"),
            transform=Transform("ties", keep=0.3),
            tasks=(
                TaskSpec("SUN397", HubRef("hf://someone/clip_sun397"), hub),
                TaskSpec(
                    "Cars",
                    tmp_path / "cars" / "model.pt",
                    DataSource(path=tmp_path / "cars.npz"),
                    Metric("BLEU", maximize=True, low=0.0, high=100.0),
                ),
            ),
        ),
        method="bayesian",
        settings=RunSettings(points=30, seed=7, high=0.6),
    )


def test_what_is_left_out_is_as_usual(tmp_path):
    text = STUDY.partition("method:")[0].replace("name: Two tasks\n", "")
    study = parse_study(text, tmp_path)
    assert (study.name, study.method) == ("", "map")
    assert study.settings == RunSettings(default_points("map", 2))


def test_a_file_says_on_how_many_images_points_are_measured(tmp_path):
    text = STUDY.replace("{name: BLEU, maximize: true, low: 0, high: 100}", "loss").replace(
        "seed: 7", "images: 200"
    )
    study = parse_study(text, tmp_path)
    assert study.settings == RunSettings(points=30, images=200, high=0.6)
    assert "  images: 200\n" in study_text(study, tmp_path)
    assert parse_study(study_text(study, tmp_path), tmp_path) == study
    with pytest.raises(StudyError, match="Pareto Merging has no use for 'images': leave it out, or choose"):
        parse_study(text.replace("bayesian", "pareto_merging").replace(", high: 0.6", ""), tmp_path)


def test_paths_start_from_the_files_folder_or_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    files = "{path: images, class_names: classes.txt, templates: prompts.json}"
    text = (
        STUDY.replace("cars.npz", files)
        .replace("cars/model.pt", "~/cars.pt")
        .replace("ViT-B-32\n", "my clip.json\n")
    )
    (tmp_path / "study.yaml").write_text(text)
    spec = read_study_file(tmp_path / "study.yaml").spec
    task = spec.tasks[1]
    assert spec.architecture == str(tmp_path / "my clip.json")
    assert task.checkpoint == Path("/home/somebody/cars.pt")
    assert (task.data.path, task.data.class_names, task.data.templates) == (
        tmp_path / "images",
        tmp_path / "classes.txt",
        tmp_path / "prompts.json",
    )


def test_what_is_written_reads_back_the_same(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    odd = DataSource(
        path=folder / "dätä" / "1e3",
        image="image: 1",
        class_names=("no", "1e5", "üß", "- a", "12:30", "null"),
        templates=folder / "prompts",  # without an ending this would read as the name of a shipped set
        skip_corrupt=True,
        seed=3,
    )
    shared = {"val": "train"}
    study = StudyFile(
        name="A: study # of 'mine'",
        spec=StudySpec(
            family="language",
            pretrained=folder / "base",
            options={"block": 8, "nested": {"a": [1, 2.5, 1e-9, None, True]}},
            tasks=(
                TaskSpec("1e3", tmp_path / "elsewhere" / "a.pt", odd, F1),
                TaskSpec("yes", folder / "~b.pt", DataSource(path=folder / "b.txt", splits=shared)),
                TaskSpec("c", folder / "hf:" / "c", DataSource(path=folder / "c.txt", splits=shared)),
                TaskSpec(
                    "d", HubRef("hf://a/b"), DataSource(path="torchvision://MNIST", templates=("{}", "a {}"))
                ),
            ),
        ),
        method="nested",
        settings=RunSettings(
            points=20, device="cpu", weights={"1e3": 2.0, "yes": 1.0}, order=["c", "d", "1e3", "yes"]
        ),
    )
    text = study_text(study, folder)
    assert parse_study(text, folder) == study
    assert "checkpoint: ~b.pt" not in text
    write_study_file(folder / "study.yaml", study)
    assert read_study_file(folder / "study.yaml") == study
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


def test_paths_below_the_folder_are_relative(tmp_path):
    study = parse_study(STUDY, tmp_path / "here")
    below = yaml.safe_load(study_text(study, tmp_path))
    assert below["tasks"][1]["checkpoint"] == "here/cars/model.pt"
    assert below["tasks"][1]["data"] == "here/cars.npz"
    beside = yaml.safe_load(study_text(study, tmp_path / "there"))
    assert beside["tasks"][1]["data"] == str(tmp_path / "here" / "cars.npz")


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    study = parse_study(STUDY, tmp_path)
    with pytest.raises(StudyError, match=r"nowhere/study\.yaml can't be written: No such file or directory"):
        write_study_file(tmp_path / "nowhere" / "study.yaml", study)


def test_the_shipped_studies():
    assert len(SHIPPED) == 5
    for path in SHIPPED:
        study = read_study_file(path)
        assert study.name
        assert parse_study(study_text(study, path.parent), path.parent) == study


def test_shipped_clip_studies_name_what_open_clip_has():
    import open_clip

    for path in SHIPPED:
        study = read_study_file(path)
        if study.spec.family == "clip":
            architecture, _, tag = study.spec.pretrained.parts
            assert architecture == study.spec.architecture
            assert (architecture, tag) in open_clip.list_pretrained()
            assert open_clip.get_model_config(architecture)["quick_gelu"]


def test_shipped_prompts_and_torchvision_datasets_exist():
    from torchvision import datasets

    from mapmerge_core.tasks.datasets.templates import read_templates

    for path in SHIPPED:
        for task in read_study_file(path).spec.tasks:
            if task.data.templates is not None:
                assert read_templates(task.data.templates)
            if task.data.torchvision:
                assert hasattr(datasets, task.data.torchvision)


def test_a_methods_fields_are_those_of_a_run():
    assert set(MethodFields.model_fields) == {"name", *(each.name for each in fields(RunSettings))}
    assert set(TrainingFields.model_fields) == {each.name for each in fields(Training)}


LEARNING = """\
method:
  name: pareto_merging
  points: 15
  seed: 2
  training:
    steps: 300
    lr: 1e-2
    mu: 1
    scalarisation: linear
    data_free: false
    personalised: ["*.attn.*", proj]
"""


def learning(training: str = LEARNING.partition("training:")[2]) -> str:
    """A study whose method is Pareto Merging, with another ``training``; its field is in line 17."""
    return STUDY.partition("method:")[0] + LEARNING.partition("training:")[0] + "training:" + training


def test_pareto_merging_says_how_it_learns(tmp_path):
    study = parse_study(learning(), tmp_path)
    assert study.method == "pareto_merging"
    training = Training(steps=300, lr=0.01, mu=1.0, scalarisation="linear", personalised=("*.attn.*", "proj"))
    assert study.settings == RunSettings(points=15, seed=2, training=training)
    assert parse_study(study_text(study, tmp_path), tmp_path) == study
    plain = parse_study(STUDY.partition("method:")[0] + "method: {name: pareto_merging}", tmp_path)
    assert plain.settings == RunSettings(11, training=Training())
    assert parse_study(study_text(plain, tmp_path), tmp_path) == plain
    for training in (None, Training()):  # nothing is written that is as usual
        settings = replace(plain.settings, training=training)
        text = study_text(replace(plain, settings=settings), tmp_path)
        assert yaml.safe_load(text)["method"] == {"name": "pareto_merging", "points": 11}
    for each in fields(Training):  # whatever differs is written
        value = {"scalarisation": "linear", "data_free": True, "personalised": ("a",)}.get(each.name, 7)
        other = replace(plain, settings=replace(plain.settings, training=Training(**{each.name: value})))
        assert parse_study(study_text(other, tmp_path), tmp_path) == other


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (" {stesp: 3}", "line 17: method.training.stesp isn't a field of a training: it may have steps"),
        (" {steps: 3.5}", "line 17: method.training.steps should be a whole number, not 3.5."),
        ("\n    steps: 3\n    lr: fast", 'line 19: method.training.lr should be a number, not "fast".'),
        (" {scalarisation: mean}", "method.training.scalarisation should be 'smooth_tchebycheff', "),
        (" {data_free: 1}", "method.training.data_free should be true or false, not 1."),
        (" {personalised: attn}", 'method.training.personalised should be a list, not "attn".'),
        (" 300", "line 17: method.training should be a training, with steps, batch_size"),
        ("\n    steps: 0", "line 17: Pareto Merging needs at least 1 step, not 0."),
        (" {beta_norm: -1}", "line 17: Pareto Merging's beta_norm must be 0 or more, not -1."),
        (" {personalised: []}", "line 17: Name the tensors to personalise"),
        (" {steps: 3}\n  low: 0.2", "line 18: Pareto Merging has no use for 'low': leave it out, or choose"),
        (" {steps: 3}\n  rule: maximize mean", "line 18: Pareto Merging has no use for 'rule'"),
    ],
)
def test_what_is_wrong_with_how_it_learns_is_said_with_its_line(tmp_path, training, sentence):
    with pytest.raises(StudyError) as error:
        parse_study(learning(training), tmp_path, called="mine.yaml")
    assert sentence in str(error.value)
    assert str(error.value).startswith("mine.yaml, line 1")


def test_what_pareto_merging_cannot_learn_from_is_said_at_once(tmp_path):
    text = "family: classifier\n" + learning()
    with pytest.raises(StudyError, match="line 14: Pareto Merging learns from the logits of image class"):
        parse_study(text, tmp_path, called="mine.yaml")
    parse_study(text.replace("data_free: false", "data_free: true"), tmp_path)
    with pytest.raises(StudyError, match="Bayesian MAP has no use for 'training': leave it out, or choose"):
        parse_study(STUDY.replace("points: 30", "training: {steps: 3}"), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: Cars", "nmae: Cars", "line 9: tasks[1].nmae isn't a field of a task: it may have name"),
        ("    checkpoint: cars/model.pt\n", "", "line 9: tasks[1] has no 'checkpoint': add it."),
        ("pretrained: openclip://ViT-B-32/openai\n", "", "line 1: the study has no 'pretrained': add it."),
        ("limit: 2000", "limt: 2000", "line 8: tasks[0].data.limt isn't a field of a dataset: it may have"),
        ("high: 100}", "hi: 100}", "line 12: tasks[1].metric.hi isn't a field of a metric: it may"),
        ("seed: 7", "sead: 7", "line 13: method.sead isn't a field of a method: it may have name"),
        ("keep: 0.3", "drip: 1", "line 4: transform.drip isn't a field of a transform: it may"),
        ("keep: 0.3", "keep: 3", "line 4: TIES keeps a share of each task vector above 0"),
        ("keep: 0.3", "keep: .nan", "line 4: transform.keep should be a finite number"),
        ("keep: 0.3", "keep: a lot", 'line 4: transform.keep should be a number, not "a lot".'),
        ("kind: ties", "kind: tie", "line 4: transform.kind should be 'ties_trim', 'ties' or 'dare', not"),
        ("transform: {kind: ties, keep: 0.3}", "transform: ties", "line 4: transform should be a"),
        ("name: Cars", "name: 8", "line 9: tasks[1].name should be text, not 8: put it in quotes."),
        ("name: Cars", "name: 2020-01-01", 'should be text, not "2020-01-01": put it in quotes.'),
        ("name: Cars", "name: ''", "line 9: tasks[1].name is empty: fill it in, or leave the field out."),
        ("name: Cars", "name: SUN397", "line 9: Two tasks are called 'SUN397': give every task a name"),
        ("name: Cars", "name: pretrained", "'pretrained' means the pre-trained model"),
        ("points: 30", "points: 30.5", "line 13: method.points should be a whole number, not 30.5."),
        ("points: 30", "points: true", "line 13: method.points should be a whole number, not true."),
        ("points: 30", "points: 3", "line 13: 3 points are too few for Bayesian MAP"),
        ("seed: 7", "seed: -7", "line 13: The seed -7 can't be used"),
        ("seed: 7", "images: 9", "line 13: The images of each task must be a whole number from 10 on"),
        ("seed: 7", "images: 20.5", "line 13: method.images should be a whole number, not 20.5."),
        ("seed: 7", "images: 200", "line 13: 'Cars' is measured by BLEU, which is no mean over images"),
        ("seed: 7", "rule: maximize mean", "line 13: Bayesian MAP has no use for 'rule': leave it out"),
        ("name: bayesian", "name: bayes", "line 13: method.name should be 'map', 'bayesian', 'nested', "),
        ("name: bayesian", "name: nested, rule: Carrs > 1", 'line 13: There is no task "Carrs"'),
        ("architecture: ViT-B-32\n", "", "The family 'clip' needs an architecture: name one."),
        ("architecture: ViT-B-32\n", "family: clap\n", "line 2: There is no family of models 'clap': choose"),
        ("openclip://ViT-B-32/openai", "openclip://ViT", "line 3: 'openclip://ViT' is not one of"),
        ("hf://someone/clip", "hf://", "line 7: 'hf://_sun397' is not a model on the hub"),
        ("cars.npz", "ftp://cars", "line 11: 'ftp://cars' is no dataset's address"),
        ("cars.npz", "[cars.npz]", "line 11: tasks[1].data should be a dataset, with path,"),
        ("cars/model.pt", "~nobody-has-this-name/a.pt", "line 10: The path '~nobody-has-this-name/a.pt'"),
        ("cars.npz", "~nobody-has-this-name/a.npz", "line 11: The path '~nobody-has-this-name/a.npz'"),
        ("val: train", "valid: train", "line 8: There is no split 'valid': choose one of train, val, test."),
        ("limit: 2000", "limit: 0", "line 8: hf://datasets/someone/sun397: the limit must be a whole"),
        ("limit: 2000", "class_names: [1]", "line 8: tasks[0].data.class_names should be a list of"),
        ("name: BLEU, maximize: true, low: 0, high: 100", "name: BLEU", "line 12: There is no metric 'BLEU'"),
        ("maximize: true, ", "", "line 12: The metric 'BLEU' has bounds, but no 'maximize': say"),
        ("high: 100", "high: -1", "line 12: The metric 'BLEU' can't lie between 0 and -1."),
        ("limit: 2000", "limit: 1, limit: 2", "line 8: 'limit' is there twice, first in line 8: keep one."),
        ("name: Cars", "name: Cars\n    name: Vans", "line 10: 'name' is there twice, first in line 9"),
        ("tasks:\n", "tasks: [\n", "this isn't YAML: "),
        ("limit: 2000", "\tlimit: 2000", "line 8: YAML takes no tab here: indent with spaces."),
        ("name: Two tasks", "name: a: b", "line 1: this isn't YAML: mapping values are not allowed here."),
        ("name: Two tasks", "name: &a [*a]", "line 1: '*a' repeats another part: write it out."),
        ("name: Two tasks", "name: " + "[" * 30, "line 1: this lies more than 20 levels deep"),
        ("name: Two tasks", "name: !!python/object/apply:os.system [ls]", "line 1: the tag "),
        ("name: Two tasks", "name: !!python/name:os.system", "line 1: this isn't YAML: could not determine"),
        ("name: Two tasks", "? [a]\n: b", "line 1: the name of a field should be text."),
        ("name: Two tasks", "name: 2001-99-99", "line 1: '2001-99-99' is no value: put it in quotes."),
        ("name: Two tasks", "name: a\x00b", "this isn't YAML: "),
        ("name: Two tasks", "---\na: b\n---", "this isn't YAML: "),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_one_sentence_with_its_line(tmp_path, old, new, sentence):
    assert STUDY.count(old) == 1
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace(old, new))
    with pytest.raises(StudyError) as error:
        read_study_file(file)
    message = str(error.value)
    assert message.startswith(f"{file}")
    assert sentence in message
    assert message.endswith(".")
    assert "\n" not in message


def test_of_several_problems_the_first_is_shown_and_others_counted(tmp_path):
    text = STUDY.replace("name: Cars", "nmae: Cars").replace("seed: 7", "sead: 7")
    with pytest.raises(StudyError, match=r"line 9: tasks\[1\]\.nmae isn't .* metric \(and 2 more\)\.$"):
        parse_study(text, tmp_path, called="study.yaml")


def test_an_editors_text_has_lines_and_no_file(tmp_path):
    with pytest.raises(StudyError, match=r"^Line 4: transform\.kep isn't a field"):
        parse_study(STUDY.replace("keep", "kep"), tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: No such file or directory."),
        (b"", "it holds nothing"),
        (b"- a\n", "it should hold fields"),
        (b"\xff\xfe\x00", "it holds bytes that aren't text in UTF-8"),
        (b"#" * 1_000_001, "is larger than 1 MB, so it is no study."),
        (b"tasks: []\npretrained: a\narchitecture: b\n", "line 1: A study merges two tasks or more, but 0"),
    ],
)
def test_files_that_are_no_studies(tmp_path, content, sentence):
    file = tmp_path / "study.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StudyError) as error:
        read_study_file(file)
    assert sentence in str(error.value)
    assert "study.yaml" in str(error.value)


def test_entities_that_multiply_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 30)]
    with pytest.raises(StudyError, match=r"line 2: '\*a0' repeats another part"):
        parse_study("\n".join(lines), tmp_path, called="bomb.yaml")


def test_reading_a_study_never_imports_torch():
    program = (
        "import sys; from mapmerge_core.studies import proposing, study_file; "
        f"study_file.read_study_file({str(SHIPPED[0])!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Downloads


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one model and one dataset of two configurations."""

    def files(sizes: dict[str, int]) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        return SimpleNamespace(sha="0" * 40, siblings=siblings)

    def model_info(_self, name, **_):
        assert name == "someone/clip_sun397"
        return files({"model.safetensors": 500, "pytorch_model.bin": 501, "config.json": 20})

    def dataset_info(_self, name, **_):
        if name != "someone/sun397":
            response = SimpleNamespace(status_code=404, headers={}, request=None)
            raise huggingface_hub.errors.RepositoryNotFoundError("Not found", response=response)
        return files({"README.md": 7, "full/train.parquet": 3_000_000, "small/train.parquet": 40_000})

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("config", "size"), [(None, 3_040_000), ("small", 40_000)])
def test_downloads_are_known_before_they_start(tmp_path, config, size):
    text = STUDY.replace("openclip://ViT-B-32/openai", "pretrained.pt")
    if config:
        text = text.replace("limit: 2000", f"config: {config}")
    assert downloads(parse_study(text, tmp_path).spec) == (
        Download("hf://someone/clip_sun397", 520, cached=False),
        Download("hf://datasets/someone/sun397", size, cached=False),
    )


@pytest.mark.usefixtures("hub")
def test_a_dataset_that_is_not_there_is_said_before_any_download(tmp_path):
    text = STUDY.replace("openclip://ViT-B-32/openai", "pretrained.pt").replace(
        "datasets/someone", "datasets/noone"
    )
    with pytest.raises(DatasetError, match="the hub has no dataset 'noone/sun397'"):
        downloads(parse_study(text, tmp_path).spec)


def test_sizes_that_cannot_be_known_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path))
    text = STUDY.replace("openclip://ViT-B-32/openai", "a.pt").replace("cars.npz", "torchvision://GTSRB")
    plans = downloads(parse_study(text, tmp_path).spec)
    assert [(plan.n_bytes, plan.cached) for plan in plans] == [(None, False)] * 3
    (tmp_path / "cache" / "torchvision" / "GTSRB").mkdir(parents=True)
    assert downloads(parse_study(text, tmp_path).spec)[2].cached


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(None, "of unknown size"), (605_157_884, "605 MB"), (16_060_000_000, "16.1 GB"), (20, "1 kB")],
)
def test_sizes_are_shown_as_people_say_them(n_bytes, text):
    assert download_text(Download("hf://a/b", n_bytes, cached=False)) == f"hf://a/b, {text}"


# The command line


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert main([str(word) for word in words]) == code, err.getvalue()
        return out.getvalue(), err.getvalue()

    return run


def test_run_makes_a_study_of_a_file_once(tiny_zoo, tmp_path, command):
    spec = spec_from_manifest(tiny_zoo, ["Colours", "Stripes"])
    settings = RunSettings(points=7, seed=5, device="cpu")
    file = tmp_path / "mine" / "study.yaml"
    file.parent.mkdir()
    write_study_file(file, StudyFile(name="Mine", spec=spec, method="map", settings=settings))
    command("run", file)
    store = Store(tmp_path / "home")
    [study] = store.studies()
    [row] = store.runs(study.id)
    assert (study.name, study.spec, row.settings, row.method) == ("Mine", spec, settings, "map")
    assert (row.status, row.n_evaluations) == ("done", 14)
    out, err = command("run", file.parent)  # a folder with a study.yaml
    assert err == "'Mine' has done this run already: other --points, --images or --seed evaluate more.\n"
    assert "Study 1, Mine: 14 evaluations" in out
    # What is typed comes before what the file says; settings that it leaves out stay.
    command("run", file, "--points", "8")
    command("run", file, "--method", "direct", "--points", "7")
    assert len(store.studies()) == 1
    _, more, direct = store.runs(study.id)
    assert more.settings == replace(settings, points=8)
    assert (direct.method, direct.settings) == ("direct", settings)
    # Another name or other tasks are another study.
    command("run", file, "--name", "Other")
    command("run", file, "--tasks", "Stripes,Colours")
    assert [(row.name, row.spec.task_names) for row in sorted(store.studies(), key=lambda row: row.id)] == [
        ("Mine", ("Colours", "Stripes")),
        ("Other", ("Colours", "Stripes")),
        ("Mine (2)", ("Stripes", "Colours")),
    ]
    _, err = command("run", file, "--tasks", "Stripes,Stars", code=2)
    assert "has no task 'Stars': choose among Colours, Stripes." in err


def test_run_says_what_was_guessed_of_models_and_datasets(tiny_zoo, tmp_path, command):
    spec = spec_from_manifest(tiny_zoo, ["Colours", "Stripes"])
    arrays = np.load(tiny_zoo / "Colours.npz")
    for name in (0, 1):
        (tmp_path / "images" / f"kind {name}").mkdir(parents=True)
        for row in np.flatnonzero(arrays["val_labels"] == name)[:10]:
            Image.fromarray(arrays["val_images"][row]).save(
                tmp_path / "images" / f"kind {name}" / f"{row}.png"
            )
    rows = [
        f"images/kind {path.parent.name[-1]}/{path.name},{path.parent.name}"
        for path in tmp_path.rglob("*.png")
    ]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,kind", *rows]))
    tasks = (
        replace(spec.tasks[0], checkpoint=spec.pretrained),
        replace(spec.tasks[1], data=DataSource(path=tmp_path / "table.csv")),
    )
    settings = RunSettings(points=6, device="cpu")
    write_study_file(
        tmp_path / "a.yaml",
        StudyFile(spec=replace(spec, tasks=tasks), method="map", settings=settings),
    )
    _, err = command("run", tmp_path / "a.yaml")
    assert "'Colours' is the pre-trained model itself: fine-tuning changed nothing that is merged.\n" in err
    assert "Stripes: The columns are 'file_name' as the image, 'kind' as the label.\n" in err
    assert "Stripes: There is no validation split: 2 of the 20 examples" in err


def test_run_goes_on_with_an_unfinished_run_of_a_file(tiny_zoo, tmp_path, command):
    spec = spec_from_manifest(tiny_zoo, ["Colours", "Stripes"])
    settings = RunSettings(points=6, seed=5, device="cpu")
    store = Store(tmp_path / "home")
    row = store.create_run(store.create_study("Mine", spec).id, settings)
    store.set_status(row.id, "stopped")
    write_study_file(tmp_path / "a.yaml", StudyFile(name="Mine", spec=spec, method="map", settings=settings))
    command("run", tmp_path / "a.yaml")
    assert [(run.id, run.status) for run in store.runs(1)] == [(row.id, "done")]


def test_run_says_what_it_would_download_first(tmp_path, command, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "study.yml").write_text(STUDY.replace("openclip://ViT-B-32/openai", "a.pt"))
    _, err = command("run", tmp_path / "study.yml", code=2)
    assert err.startswith(
        f"{tmp_path / 'a.pt'} (pretrained) isn't there: put it there, or change the study's path."
    )
    (tmp_path / "cars").mkdir()
    for name in ("a.pt", "cars/model.pt", "cars.npz"):
        (tmp_path / name).touch()
    _, err = command("run", tmp_path / "study.yml", code=2)
    first, second, error = err.splitlines()
    assert first == "To download: hf://someone/clip_sun397, of unknown size"
    assert second == "To download: hf://datasets/someone/sun397, of unknown size"
    assert error.endswith(".")
    assert Store(tmp_path / "home").studies() == []


def test_a_folder_with_neither_is_one_sentence(tmp_path, command):
    _, err = command("run", tmp_path, code=2)
    assert "doesn't say all that a study needs" in err
    _, err = command("run", tmp_path / "no.yaml", code=2)
    assert err.endswith("no.yaml can't be read: No such file or directory.\n")
