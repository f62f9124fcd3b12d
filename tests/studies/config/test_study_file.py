"""Studies as YAML files: what they say, how they are wrong, and how they are written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mapmerge_core.errors import StudyError
from mapmerge_core.registries import MERGES, METHODS, METRICS
from mapmerge_core.settings import fields_of
from mapmerge_core.studies.config import Compute, RunConfig, StudyConfig, TaskConfig
from mapmerge_core.studies.config.study_file import (
    StudyFile,
    parse_study,
    read_study_file,
    study_text,
    write_study_file,
)
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metrics import Metric
from mapmerge_core.weights.io.hub import HubRef

SHIPPED = sorted((Path(__file__).parents[3] / "assets" / "studies").glob("*.yaml"))

STUDY = """\
name: Two tasks
architecture: ViT-B-32
pretrained: openclip://ViT-B-32/openai
models: {Cars: cars/model.pt}
tasks:
  - name: SUN397
    checkpoint: hf://someone/clip_sun397
    data: {path: "hf://datasets/someone/sun397", splits: {val: train}, templates: sun397, limit: 2000}
  - name: Vans
    model: Cars
    data: cars.npz
    metrics: [accuracy, {name: BLEU, maximize: true, low: 0, high: 100}]
run:
  merge: {name: ties, keep: 0.3}
  method: {name: bayesian, points: 30, seed: 7}
  high: 0.6
"""


def test_a_study_file_says_what_a_study_is(tmp_path):
    study = parse_study(STUDY, tmp_path)
    hub = DataSource(path="hf://datasets/someone/sun397", splits={"val": "train"}, templates="sun397", limit=2000)
    assert study == StudyFile(
        name="Two tasks",
        config=StudyConfig(
            architecture="ViT-B-32",
            pretrained=HubRef("openclip://ViT-B-32/openai"),
            models={"Cars": tmp_path / "cars" / "model.pt", "SUN397": HubRef("hf://someone/clip_sun397")},
            tasks=(
                TaskConfig(name="SUN397", data=hub, model="SUN397"),
                TaskConfig(
                    name="Vans",
                    data=DataSource(path=tmp_path / "cars.npz"),
                    model="Cars",
                    metrics=(METRICS["accuracy"], Metric("BLEU", maximize=True, low=0.0, high=100.0)),
                ),
            ),
        ),
        run=RunConfig(
            merge="ties",
            merge_settings={"keep": 0.3},
            method="bayesian",
            method_settings={"points": 30, "seed": 7},
            high=0.6,
        ),
    )
    assert [objective.name for objective in study.config.objectives] == ["SUN397", "Vans accuracy", "Vans BLEU"]


def test_what_is_left_out_is_as_usual(tmp_path):
    study = parse_study(STUDY.partition("run:")[0].replace("name: Two tasks\n", ""), tmp_path)
    assert (study.name, study.run) == ("", RunConfig())


def test_one_model_and_one_task_are_a_study(tmp_path):
    text = "architecture: a\npretrained: p.pt\nmodels: {one: a.pt}\ntasks: [{name: Kept, data: kept.npz}]\n"
    config = parse_study(text, tmp_path).config
    assert (config.model_names, config.tasks[0].model) == (("one",), None)
    assert parse_study(study_text(parse_study(text, tmp_path), tmp_path), tmp_path).config == config


def test_a_file_says_on_how_many_images_points_are_measured(tmp_path):
    text = STUDY.replace("[accuracy, {name: BLEU, maximize: true, low: 0, high: 100}]", "loss").replace(
        "  high: 0.6", "  images: 200"
    )
    study = parse_study(text, tmp_path)
    assert study.run.images == 200
    assert "  images: 200\n" in study_text(study, tmp_path)
    assert parse_study(study_text(study, tmp_path), tmp_path) == study


def test_paths_start_from_the_files_folder_or_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    files = "{path: images, class_names: classes.txt, templates: prompts.json}"
    text = (
        STUDY.replace("cars.npz", files).replace("cars/model.pt", "~/cars.pt").replace("ViT-B-32\n", "my clip.json\n")
    )
    (tmp_path / "study.yaml").write_text(text)
    config = read_study_file(tmp_path / "study.yaml").config
    task = config.tasks[1]
    assert config.architecture == str(tmp_path / "my clip.json")
    assert config.models["Cars"] == Path("/home/somebody/cars.pt")
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
        config=StudyConfig(
            family="language",
            pretrained=folder / "base",
            options={"block": 8},
            models={"1e3": tmp_path / "elsewhere" / "a.pt", "yes": folder / "~b.pt", "d": HubRef("hf://a/b")},
            tasks=(
                TaskConfig(name="1e3", data=odd, model="1e3", metrics=(METRICS["perplexity"],)),
                TaskConfig(name="yes", data=DataSource(path=folder / "b.txt", splits=shared), model="yes"),
                TaskConfig(name="c", data=DataSource(path=folder / "c.txt", splits=shared)),
                TaskConfig(
                    name="d",
                    data=DataSource(path="torchvision://MNIST", templates=("{}", "a {}")),
                    model="d",
                    metrics=(METRICS["loss"], METRICS["perplexity"]),
                ),
            ),
        ),
        run=RunConfig(
            method="nested",
            method_settings={"points": 20, "weights": {"1e3": 2.0, "yes": 1.0}, "order": ["d loss", "1e3", "yes"]},
            compute=Compute(device="cpu"),
        ),
    )
    text = study_text(study, folder)
    assert parse_study(text, folder) == study
    assert "yes: ~b.pt" not in text
    write_study_file(folder / "study.yaml", study)
    assert read_study_file(folder / "study.yaml") == study
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


def test_comments_and_order_are_kept_where_a_file_is_written_again(tmp_path):
    text = STUDY.replace("name: Two tasks", "# mine\nname: Two tasks  # of them").replace(
        "high: 0.6", "high: 0.6  # low"
    )
    (tmp_path / "study.yaml").write_text(text)
    study = read_study_file(tmp_path / "study.yaml")
    write_study_file(tmp_path / "study.yaml", replace(study, name="Three", run=replace(study.run, high=0.7)))
    written = (tmp_path / "study.yaml").read_text()
    assert written.split()[:8] == ["#", "mine", "name:", "Three", "#", "of", "them", "architecture:"]
    assert "high: 0.7  # low" in written
    assert read_study_file(tmp_path / "study.yaml") == replace(study, name="Three", run=replace(study.run, high=0.7))


def test_paths_below_the_folder_are_relative(tmp_path):
    study = parse_study(STUDY, tmp_path / "here")
    below = yaml.safe_load(study_text(study, tmp_path))
    assert below["models"]["Cars"] == "here/cars/model.pt"
    assert below["tasks"][1]["data"] == "here/cars.npz"
    beside = yaml.safe_load(study_text(study, tmp_path / "there"))
    assert beside["tasks"][1]["data"] == str(tmp_path / "here" / "cars.npz")


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    study = parse_study(STUDY, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file/study\.yaml can't be written: "):
        write_study_file(tmp_path / "file" / "study.yaml", study)


def test_the_shipped_studies():
    assert SHIPPED
    for path in SHIPPED:
        study = read_study_file(path)
        assert study.name
        assert parse_study(study_text(study, path.parent), path.parent) == study


def test_shipped_clip_studies_name_what_open_clip_has():
    import open_clip

    for path in SHIPPED:
        study = read_study_file(path)
        if study.config.family == "clip":
            architecture, _, tag = study.config.pretrained.parts
            assert architecture == study.config.architecture
            assert (architecture, tag) in open_clip.list_pretrained()
            assert open_clip.get_model_config(architecture)["quick_gelu"]


def test_shipped_prompts_and_torchvision_datasets_exist():
    from torchvision import datasets

    from mapmerge_core.tasks.datasets.templates import read_templates

    for path in SHIPPED:
        for task in read_study_file(path).config.tasks:
            if task.data.templates is not None:
                assert read_templates(task.data.templates)
            if task.data.torchvision:
                assert hasattr(datasets, task.data.torchvision)


@pytest.mark.parametrize("what", ["merge", "method"])
def test_whatever_differs_from_the_usual_run_is_written(tmp_path, what):
    """Of every registered merge and method: all of its settings, and nothing that is as usual."""
    plain = parse_study(STUDY.partition("run:")[0], tmp_path)
    for kind in MERGES if what == "merge" else METHODS:
        usual = RunConfig(**{what: kind.name})
        assert yaml.safe_load(study_text(replace(plain, run=usual), tmp_path))["run"][what] == kind.name
        for field in fields_of(kind.Settings):
            value = _another(field)
            if value is None:
                continue
            run = RunConfig(**{what: kind.name, f"{what}_settings": {field.name: value}})
            said = yaml.safe_load(study_text(replace(plain, run=run), tmp_path))["run"][what]
            assert set(said) == {"name", field.name}


def _another(field):
    """A value of a setting that isn't the default, None where that takes knowing the study."""
    if field.choices:
        return next(choice for choice in field.choices if choice != field.default)
    if field.kind is bool:
        return not field.default
    if field.kind is int:
        return int(max(field.low, 1)) + 6
    if field.kind is float:
        low, high = max(field.low, 0.0), min(field.high, 1.0)
        return next(value for value in (low + 0.37 * (high - low), low + 0.41 * (high - low)) if value != field.default)
    return None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: Vans", "nmae: Vans", "line 9: tasks[1].nmae isn't a field of a task: it may have name"),
        ("pretrained: openclip://ViT-B-32/openai\n", "", "line 1: the study has no 'pretrained': add it."),
        ("models: {Cars: cars/model.pt}\n", "", "line 9: The task 'Vans' names the model 'Cars', which the study doesn't"),
        ("models: {Cars: cars/model.pt}", "models: [a.pt]", "line 4: models should hold names with a checkpoint each."),
        ("models: {Cars: cars/model.pt}", "models: {Cars: 3}", "line 4: models.Cars should be the path"),
        ("model: Cars", "checkpoint: b.pt, model: Cars", "mapping values are not allowed here"),
        ("    model: Cars\n", "    checkpoint: b.pt\n    model: Cars\n", "line 10: The task 'Vans' has a 'checkpoint', and"),
        ("limit: 2000", "limt: 2000", "line 8: A dataset has no setting 'limt': choose from path"),
        ("high: 100}", "hi: 100}", "line 12: A metric has no field 'hi': it may have name, maximize"),
        ("seed: 7", "sead: 7", "line 15: Bayesian MAP has no setting 'sead': it has points"),
        ("keep: 0.3", "drip: 1", "line 14: TIES has no setting 'drip': it has keep."),
        ("keep: 0.3", "keep: 3", "line 14: TIES can't have keep = 3: give a number above 0 and at most 1."),
        ("keep: 0.3", "keep: .nan", "line 14: TIES can't have keep = nan"),
        ("keep: 0.3", "keep: a lot", "line 14: TIES can't have keep = 'a lot': give a number"),
        ("name: ties", "name: tie", "line 14: There is no merge 'tie': choose one of adamerging"),
        ("name: ties, keep: 0.3", "name: pareto_merging", "The weights of a simplex have no lowest and highest"),
        ("name: ties, keep: 0.3", "name: pareto_merging, lr: fast", "line 14: Pareto Merging can't have lr = 'fast'"),
        ("name: ties, keep: 0.3", "name: pareto_merging, personalised: []", "line 14: Name the tensors to"),
        ("name: Vans", "name: 8", "line 9: tasks[1].name should be text, not 8: put it in quotes."),
        ("name: Vans", "name: 2020-01-01", 'should be text, not "2020-01-01": put it in quotes.'),
        ("name: Vans", "name: ''", "line 9: A task has no name: give every task a name of its own."),
        ("name: Vans", "name: SUN397", "line 9: Two tasks are called 'SUN397': give every task a name"),
        ("name: Vans", "name: pretrained", "line 9: 'pretrained' means something else in rules"),
        ("name: Two tasks", "name: 7", "line 1: name should be text, not 7: put it in quotes."),
        ("points: 30", "points: 30.5", "line 15: Bayesian MAP can't have points = 30.5: give a whole number"),
        ("points: 30", "points: true", "line 15: Bayesian MAP can't have points = True: give a whole number"),
        ("points: 30", "points: 3", "line 15: 3 points are too few for Bayesian MAP"),
        ("seed: 7", "seed: -7", "line 15: Bayesian MAP can't have seed = -7"),
        ("  high: 0.6", "  images: 9", "line 16: The images of each task must be a whole number from 10 on"),
        ("  high: 0.6", "  images: 20.5", "line 16: run.images should be a whole number, not 20.5."),
        ("  high: 0.6", "  images: 200", "line 16: 'Vans BLEU' is measured by BLEU, which is no mean over images"),
        ("  high: 0.6", "  hihg: 0.6", "line 16: run.hihg isn't a field of a run: it may have merge"),
        ("  high: 0.6", "  loss: cubic", "line 16: run.loss should be 'squared', 'absolute' or 'huber', not"),
        ("  high: 0.6", "  link: logit", "line 16: There is no link 'logit': choose one of identity"),
        ("  high: 0.6", "  precision: half", "line 16: run.precision should be 'auto', 'float32' or 'bfloat16'"),
        ("  high: 0.6", "  vectors: bfloat16", "line 14: TIES looks into the task vectors, which takes float32"),
        ("name: bayesian, points: 30, seed: 7", "name: nested, rule: Carrs > 1", 'line 15: There is no objective "Carrs"'),
        ("architecture: ViT-B-32\n", "", "The family 'clip' needs an architecture: name one."),
        ("architecture: ViT-B-32\n", "family: clap\n", "line 2: There is no family of models 'clap': choose"),
        ("architecture: ViT-B-32\n", "architecture: a\noptions: {a: 1}\n", "line 3: The family CLIP zero-shot (open_clip) has no"),
        ("openclip://ViT-B-32/openai", "openclip://ViT", "line 3: 'openclip://ViT' is not one of"),
        ("hf://someone/clip", "hf://", "'hf://_sun397' is not a model on the hub"),
        ("cars.npz", "ftp://cars", "line 11: 'ftp://cars' is no dataset's address"),
        ("cars.npz", "[cars.npz]", "line 11: tasks[1].data should hold fields"),
        ("cars/model.pt", "~nobody-has-this-name/a.pt", "line 4: The path '~nobody-has-this-name/a.pt'"),
        ("cars.npz", "~nobody-has-this-name/a.npz", "line 11: The path '~nobody-has-this-name/a.npz'"),
        ("val: train", "valid: train", "line 8: There is no split 'valid': choose one of train, val, test."),
        ("limit: 2000", "limit: 0", "line 8: hf://datasets/someone/sun397: the limit must be a whole"),
        ("limit: 2000", "class_names: [1]", "line 8: 'class_names' must be a list of texts or a file, not [1]."),
        ("name: BLEU, maximize: true, low: 0, high: 100", "name: BLEU", "line 12: A metric of one's own needs a 'name' and"),
        ("[accuracy, {name: BLEU, maximize: true, low: 0, high: 100}]", "BLEU", "line 12: There is no metric 'BLEU'"),
        ("maximize: true, ", "", "line 12: A metric of one's own needs a 'name' and 'maximize'"),
        ("high: 100", "high: -1", "line 12: The metric 'BLEU' can't lie between 0 and -1"),
        ("limit: 2000", "limit: 1, limit: 2", "line 8: 'limit' is there twice, first in line 8: keep one."),
        ("limit: 2000", "0x_: 1", "line 8: A dataset has no setting '0x_': choose from path"),
        ("limit: 2000", "limit: 0x_", "line 8: '0x_' is no value: put it in quotes."),
        ("limit: 2000", r'"\ud800": 1', "line 8: this holds a character that isn't text: leave it out."),
        ("name: Vans", "name: Vans\n    name: Cars", "line 10: 'name' is there twice, first in line 9"),
        ("tasks:\n", "tasks: [\n", "this isn't YAML: "),
        ("name: Two tasks", "name: a: b", "line 1: this isn't YAML: mapping values are not allowed here."),
        ("name: Two tasks", "name: &a [*a]", "line 1: '*a' repeats another part: write it out."),
        ("name: Two tasks", "name: " + "[" * 30, "line 1: this lies more than 20 levels deep"),
        ("name: Two tasks", "name: !!python/object/apply:os.system [ls]", "line 1: the tag "),
        ("name: Two tasks", "name: !!python/name:os.system", "line 1: the tag "),
        ("name: Two tasks", "? [a]\n: b", "line 1: the name of a field should be text."),
        ("name: Two tasks", "? {a: b}\n: c", "line 1: the name of a field should be text."),
        ("name: Two tasks", "name: 2001-99-99", "line 1: '2001-99-99' is no value: put it in quotes."),
        ("name: Two tasks", "<<: {name: a}", "line 1: << isn't a field of a study"),
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


def test_what_a_merge_cannot_learn_from_is_said_at_once(tmp_path):
    run = "run:\n  merge: {name: pareto_merging, data_free: false}\n"
    text = "family: classifier\n" + STUDY.partition("run:")[0] + run
    with pytest.raises(StudyError, match=r"line 15: Pareto Merging learns from the logits of image classifiers: train"):
        parse_study(text, tmp_path, called="mine.yaml")
    parse_study(text.replace("data_free: false", "data_free: true"), tmp_path)


def test_of_several_problems_the_first_is_shown_and_others_counted(tmp_path):
    text = STUDY.replace("name: Vans", "name: 8").replace("architecture: ViT-B-32", "architecture: 3")
    with pytest.raises(
        StudyError, match=r"line 2: architecture should be text, not 3: put it in quotes \(and 1 more\)\.$"
    ):
        parse_study(text, tmp_path, called="study.yaml")


def test_an_editors_text_has_lines_and_no_file(tmp_path):
    with pytest.raises(StudyError, match=r"^Line 14: TIES has no setting 'kep'"):
        parse_study(STUDY.replace("keep", "kep"), tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: No such file or directory."),
        (b"", "it holds nothing"),
        (b"- a\n", "it should hold fields"),
        (b"\xff\xfe\x00", "it holds bytes that aren't text in UTF-8"),
        (b"#" * 250_001, "is larger than 250 kB, so it is no study."),
        (b"tasks: []\npretrained: a\narchitecture: b\n", "A study merges one model or more, and none was given"),
        (b"tasks: []\npretrained: a\narchitecture: b\nmodels: {a: b}", "line 1: A study measures one task or more"),
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
        "import sys; from mapmerge_core.studies.discovery import proposing; "
        "from mapmerge_core.studies.config import study_file; "
        f"study_file.read_study_file({str(SHIPPED[0])!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
