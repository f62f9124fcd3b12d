"""The Models page: folders as they are, study files, downloads, and what the check says."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.config.study_file import read_study_file
from mapmerge_core.studies.store import Store
from mapmerge_core.weights.io.hub import Download
from tests.pages.conftest import ROOT, TIMEOUT, texts, wait_for_jobs
from tests.pages.loose import WORDS, make_language_folder, make_loose_folder

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

READY = sorted((ROOT / "assets" / "studies").glob("*.yaml"))


@pytest.fixture
def loose(tiny_zoo: Path, tmp_path: Path) -> Path:
    return make_loose_folder(tiny_zoo, tmp_path / "loose")


@pytest.fixture
def study_yaml(tiny_zoo: Path, tmp_path: Path) -> Path:
    """A study file beside a copy of the tiny zoo, with a comment and settings of its own."""
    folder = shutil.copytree(tiny_zoo, tmp_path / "study")
    (folder / "manifest.json").unlink()
    path = folder / "mine.yaml"
    path.write_text(
        "# Mine.\n"
        "name: My study\n"
        "family: clip\n"
        "architecture: tiny-clip.json\n"
        "pretrained: pretrained.safetensors\n"
        "tasks:\n"
        "  - {name: Colours, checkpoint: Colours.safetensors, data: Colours.npz}\n"
        "  - {name: Stripes, checkpoint: Stripes.safetensors, data: Stripes.npz}\n"
        "run: {method: {name: bayesian, points: 9, seed: 3}}\n"
    )
    return path


def open_place(app: AppTest, place: Path | str) -> AppTest:
    app.text_input(key="folder").set_value(str(place)).run()
    assert not app.exception, app.exception
    return app


def settle(app: AppTest) -> AppTest:
    """Waits for what the page waits for: the check, the diagnosis, the hubs."""
    deadline = time.monotonic() + TIMEOUT
    while 'class="busy"' in texts(app):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        app.run()
    assert not app.exception, app.exception
    return app


def check(app: AppTest) -> AppTest:
    app.button(key="check").click().run()
    return settle(app)


def said(app: AppTest) -> str:
    """What the page says, as a person reads it."""
    return texts(app).replace("\\", "")


def edit(
    app: AppTest, table: str, rows: dict[int, dict[str, object]], added: Sequence[dict[str, object]] = ()
) -> AppTest:
    """Edits a proposal's table of "models" or "tasks", which AppTest can't."""
    keys = [found.proto.id.split("-", 2)[-1] for found in app.dataframe]
    (key,) = [key for key in keys if key.startswith(f"{table}_/")]
    app.session_state[key] = {"edited_rows": rows, "added_rows": list(added), "deleted_rows": []}
    return app.run()


def frame_with(app: AppTest, column: str) -> pd.DataFrame:
    """The table that has a column of this name."""
    return next(found.value for found in app.dataframe if column in found.value)


def test_a_folder_as_it_is_becomes_a_study(visit: Callable[..., AppTest], home: Path, loose: Path) -> None:
    app = open_place(visit("models"), loose)
    assert app.selectbox(key=f"family_{loose}").value == "clip"
    assert app.selectbox(key=f"architecture_{loose}").value == "tiny-clip.json"
    assert app.selectbox(key=f"pretrained_{loose}").value == "models/clip_pretrained.safetensors"
    assert "taken for the pre-trained model, by its name" in said(app)
    check(app)
    assert "All 2 models fit" in app.success[0].value
    assert "5 classes · 60 validation, 60 test" in said(app)
    assert 'alt="red"' in said(app), "the images are shown with their labels"
    app.button(key="create_study").click().run()
    assert app.title[0].value == "Evaluate"
    (study,) = Store(home).studies.all()
    assert study.config.model_names == ("colours", "stripes")
    assert [task.model for task in study.config.tasks] == ["colours", "stripes"]
    assert study.config.tasks[0].data.path == loose / "data" / "colours"


def test_only_what_is_missing_is_asked_for(visit: Callable[..., AppTest], loose: Path) -> None:
    (loose / "data" / "stripes").rename(loose / "data" / "patterns")
    app = open_place(visit("models"), loose)
    assert ["'stripes'" in info.value for info in app.info] == [True], "one thing is asked for"
    assert "check" not in {button.key for button in app.button}
    edit(app, "tasks", {1: {"data": "data/patterns", "task": "Patterns", "metrics": ["loss"]}})
    assert not app.info
    assert "All 2 models fit" in check(app).success[0].value
    frame = frame_with(app, "Task")
    assert list(frame["Metrics"]) == ["accuracy", "loss"]
    assert list(frame["Task"]) == ["colours", "Patterns"]


def test_a_task_may_have_two_metrics_and_another_no_model(
    visit: Callable[..., AppTest], home: Path, loose: Path
) -> None:
    app = open_place(visit("models"), loose)
    kept = {"task": "Kept", "data": "data/stripes", "model": None, "metrics": None}
    edit(app, "tasks", {0: {"metrics": ["accuracy", "loss"]}}, [kept])
    assert "All 2 models fit" in check(app).success[0].value
    frame = frame_with(app, "Task")
    assert list(frame["Metrics"]) == ["accuracy, loss", "accuracy", "accuracy"]
    assert list(frame["Fine-tuned model"]) == ["colours", "stripes", "none: a skill to keep"]
    app.button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    names = [objective.name for objective in study.config.objectives]
    assert names == ["colours accuracy", "colours loss", "stripes", "Kept"]


def test_data_beside_the_models_is_proposed_as_a_skill_to_keep(
    visit: Callable[..., AppTest], home: Path, loose: Path
) -> None:
    shutil.copytree(loose / "data" / "stripes", loose / "data" / "extra")
    check(open_place(visit("models"), loose)).button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    assert [task.model for task in study.config.tasks] == ["colours", "stripes", None]


def test_one_model_and_a_skill_to_keep_are_a_study(visit: Callable[..., AppTest], home: Path, loose: Path) -> None:
    app = open_place(visit("models"), loose)
    edit(app, "models", {1: {"use": False}})
    kept = {"task": "Kept", "data": "data/stripes", "model": None, "metrics": ["accuracy"]}
    edit(app, "tasks", {}, [kept])
    assert "The model fits" in check(app).success[0].value
    app.button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    assert study.config.model_names == ("colours",)
    assert len(study.config.objectives) == 2


def test_two_models_of_one_name_are_one_sentence(visit: Callable[..., AppTest], loose: Path) -> None:
    app = edit(open_place(visit("models"), loose), "models", {1: {"name": "colours"}})
    assert ["Two models are called 'colours'" in info.value for info in app.info] == [True]


def test_a_dataset_from_elsewhere_can_be_chosen(visit: Callable[..., AppTest], loose: Path, tmp_path: Path) -> None:
    moved = shutil.move(loose / "data" / "stripes", tmp_path / "far away")
    app = open_place(visit("models"), loose)
    app.multiselect(key=f"other_data_{loose}").set_value([str(moved)]).run()
    edit(app, "tasks", {1: {"data": str(moved)}})
    assert "All 2 models fit" in check(app).success[0].value


def test_another_family_can_be_chosen_or_typed(visit: Callable[..., AppTest], loose: Path) -> None:
    app = open_place(visit("models"), loose)
    app.selectbox(key=f"family_{loose}").set_value("language").run()
    assert not app.error
    assert "Causal language model (transformers)" in app.selectbox(key=f"family_{loose}").options
    # AppTest knows no values besides the options.
    app.session_state[f"family_{loose}"] = "no such family"
    app._run()
    assert not app.exception
    assert ["no family of models" in error.value for error in app.error] == [True]


def test_models_left_out_leave_too_few(visit: Callable[..., AppTest], loose: Path) -> None:
    app = edit(open_place(visit("models"), loose), "models", {0: {"use": False}, 1: {"use": False}})
    assert "one model or more" in app.info[0].value


def test_a_proposal_is_saved_and_opened_again(visit: Callable[..., AppTest], loose: Path) -> None:
    app = open_place(visit("models"), loose)
    path = loose / "kept.yaml"
    app.text_input(key=f"save_path_{loose / 'study.yaml'}").set_value(str(path)).run()
    app.button(key="save").click().run()
    assert not app.error
    kept = read_study_file(path).config
    assert kept.pretrained == loose / "models" / "clip_pretrained.safetensors"
    assert "colours: models/clip_colours.safetensors" in path.read_text(), "paths are the folder's own"
    assert app.text_input(key="folder").value == str(path)
    assert app.text_area(key=f"study_text_{path}").value == path.read_text()
    assert "All 2 models fit" in check(app).success[0].value


@pytest.mark.parametrize(
    ("typed", "sentence"), [("mine.txt", "let it end in .yaml"), ("tiny-clip.json/mine.yaml", "can't be written")]
)
def test_a_place_where_nothing_can_be_saved_is_one_sentence(
    visit: Callable[..., AppTest], loose: Path, typed: str, sentence: str
) -> None:
    app = open_place(visit("models"), loose)
    app.text_input(key=f"save_path_{loose / 'study.yaml'}").set_value(str(loose / typed)).run()
    if "save" in {button.key for button in app.button}:
        app.button(key="save").click().run()
    assert [sentence in error.value.replace("\\", "") for error in app.error] == [True]


def test_a_saved_study_is_read_anew(visit: Callable[..., AppTest], loose: Path) -> None:
    file = loose / "other.yaml"
    file.write_text("name: x\n")
    app = open_place(visit("models"), file)
    app.text_area(key=f"study_text_{file}").input("name: y\n").run()
    assert app.error
    app = open_place(app, loose)
    app.text_input(key=f"save_path_{loose / 'study.yaml'}").set_value(str(file)).run()
    app.checkbox(key="save_replace").check().run()
    app.button(key="save").click().run()
    assert app.text_area(key=f"study_text_{file}").value == file.read_text()
    assert not app.error


def test_a_file_that_is_there_is_replaced_only_after_asking(visit: Callable[..., AppTest], study_yaml: Path) -> None:
    app = open_place(visit("models"), study_yaml)
    assert app.button(key="save").disabled
    app.checkbox(key="save_replace").check().run()
    assert not app.button(key="save").disabled


def test_a_study_file_is_opened_changed_and_saved(visit: Callable[..., AppTest], home: Path, study_yaml: Path) -> None:
    app = open_place(visit("models"), study_yaml)
    key = f"study_text_{study_yaml}"
    changed = study_yaml.read_text().replace("name: My study", "name: Other study")
    app.text_area(key=key).input(changed.replace("data: Stripes.npz", "date: Stripes.npz")).run()
    assert ["Line 8: tasks[1].date" in error.value.replace("\\", "") for error in app.error] == [True]
    assert {"check", "save_text", "save"}.isdisjoint({button.key for button in app.button})
    app.text_area(key=key).input(changed).run()
    app.button(key="save_text").click().run()
    assert study_yaml.read_text() == changed, "comments stay"
    assert "All 2 models fit" in check(app).success[0].value
    assert app.text_input(key="study_name").placeholder == "Other study"
    app.button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    assert study.name == "Other study"
    assert app.selectbox(key=f"method_{study.id}_0").value == "bayesian"
    assert app.number_input(key=f"bayesian_points_{study.id}_0").value == 9
    assert app.number_input(key=f"seed_{study.id}_0").value == 3


def test_a_folder_with_a_study_file_opens_it(visit: Callable[..., AppTest], study_yaml: Path) -> None:
    file = study_yaml.rename(study_yaml.with_name("study.yaml"))
    app = open_place(visit("models"), file.parent)
    assert app.text_area(key=f"study_text_{file}").value.startswith("# Mine.")
    assert app.button(key="check")


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_study_opens_and_says_what_it_fetches(
    visit: Callable[..., AppTest], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.parts.models import background

    url = "hf://organisation/large"
    monkeypatch.setattr(background, "plan", lambda _: (Download(url, 605_000_000, cached=False),))
    app = visit("models")
    app.selectbox(key="ready_study").set_value(path).run()
    assert app.text_input(key="folder").value == str(path)
    assert app.text_area(key=f"study_text_{path}").value == path.read_text()
    assert not settle(app).error
    frame = app.dataframe[0].value
    assert frame.to_numpy().tolist() == [[url, "605.0 MB"]]
    assert app.button(key="check").label == "Download and check"
    assert "save_text" not in {button.key for button in app.button}, "what is shipped stays as it is"


def test_a_copy_of_a_ready_study_keeps_comments_and_relative_paths(
    visit: Callable[..., AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.parts.models import background

    monkeypatch.setattr(background, "plan", lambda _: ())
    shipped = next(path for path in READY if "medical" in path.stem)
    app = settle(open_place(visit("models"), shipped))
    copy = tmp_path / "copy.yaml"
    key = next(found.key for found in app.text_input if str(found.key).startswith("save_path_"))
    app.text_input(key=key).set_value(str(copy)).run()
    app.button(key="save").click().run()
    assert copy.read_text() == shipped.read_text()
    assert app.text_input(key="folder").value == str(copy)


def test_what_is_here_already_is_not_fetched(
    visit: Callable[..., AppTest], study_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.parts.models import background

    text = study_yaml.read_text().replace("data: Colours.npz", "data: hf://datasets/organisation/name")
    study_yaml.write_text(text)
    plans = [Download("hf://datasets/organisation/name", 0, cached=True)]
    monkeypatch.setattr(background, "plan", lambda _: tuple(plans))
    app = settle(open_place(visit("models"), study_yaml))
    assert app.dataframe[0].value["Download"][0] == "already here"
    assert app.button(key="check").label == "Check"


def test_a_hub_that_has_no_such_model_is_one_sentence(
    visit: Callable[..., AppTest], study_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapmerge_core.errors import CheckpointError
    from pages.parts.models import background

    def refuse(_: object) -> tuple[Download, ...]:
        raise CheckpointError("hf://organisation/none was not found: the hub has no such model.")

    study_yaml.write_text(
        study_yaml.read_text().replace("checkpoint: Stripes.safetensors", "checkpoint: hf://organisation/none")
    )
    monkeypatch.setattr(background, "plan", refuse)
    app = settle(open_place(visit("models"), study_yaml))
    assert ["was not found" in error.value for error in app.error] == [True]
    assert app.button(key="check"), "the network may be back"


def test_every_tensor_that_does_not_fit_is_listed(visit: Callable[..., AppTest], loose: Path) -> None:
    path = loose / "models" / "clip_stripes.safetensors"
    tensors = load_file(path)
    tensors.pop("visual.conv1.weight")
    tensors["visual.class_embedding"] = np.zeros(7, np.float16)
    tensors["visual.extra"] = np.zeros(3, np.float16)
    save_file(tensors, path)
    app = check(open_place(visit("models"), loose))
    assert len(app.error) == 1
    problems = frame_with(app, "What doesn't fit")
    assert set(problems["Model"]) == {"stripes"}
    listed = "\n".join(problems["What doesn't fit"])
    for part in ("visual.conv1.weight", "(7,)", "visual.extra"):
        assert part in listed


def test_nan_is_one_sentence(visit: Callable[..., AppTest], loose: Path) -> None:
    path = loose / "models" / "clip_stripes.safetensors"
    tensors = load_file(path)
    tensors["visual.class_embedding"][0] = np.nan
    save_file(tensors, path)
    app = check(open_place(visit("models"), loose))
    assert ["NaN" in error.value for error in app.error] == [True]


def test_unreadable_images_are_left_out_only_by_agreement(
    visit: Callable[..., AppTest], home: Path, loose: Path
) -> None:
    for image in sorted((loose / "data" / "colours" / "val" / "red").glob("*.png"))[:2]:
        image.write_bytes(image.read_bytes()[:40])
    app = check(open_place(visit("models"), loose))
    assert ["can't be read" in error.value for error in app.error] == [True]
    key = f"leave_out_{loose / 'data' / 'colours'}"
    assert [box.key for box in app.checkbox if box.key.startswith("leave_out")] == [key]
    settle(app.checkbox(key=key).check().run())
    assert not app.error
    assert "2 unreadable images are left out" in said(app)
    assert "58 validation" in said(app)
    settle(app.checkbox(key=key).uncheck().run())
    assert ["can't be read" in error.value for error in app.error] == [True]
    settle(app.checkbox(key=key).check().run())
    app.button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    assert [task.data.skip_corrupt for task in study.config.tasks] == [True, False]


def test_guessed_columns_are_shown(visit: Callable[..., AppTest], loose: Path) -> None:
    shutil.rmtree(loose / "data" / "stripes")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        pictures = []
        for _ in range(40):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        (loose / "data" / "stripes").mkdir(exist_ok=True)
        frame = pd.DataFrame({"picture": pictures, "kind": ["lines", "squares"] * 20})
        frame.to_parquet(loose / "data" / "stripes" / f"{split}.parquet")
    app = check(open_place(visit("models"), loose))
    assert not app.error
    assert "images: `picture`, labels: `kind`" in said(app)
    assert "There is no validation split" in said(app)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: (folder / "x.yaml").write_text("tasks: [\n"), "Line"),
        (lambda folder: (folder / "x.yaml").write_text(""), "holds nothing"),
        (lambda folder: (folder / "x.yaml").write_text("tasks: 3\npretrained: x\n"), "Line 1: tasks"),
        (lambda folder: (folder / "x.yaml").write_bytes(b"\xff\xfe\x00"), "no text in UTF-8"),
        (lambda folder: (folder / "x.yaml").mkdir(), "holds 0 checkpoints"),
        (lambda folder: (folder / "x.yaml").write_bytes(b"a" * 2_000_000), "larger than"),
    ],
)
def test_what_is_no_study_file_is_one_sentence(
    visit: Callable[..., AppTest], tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    make(tmp_path)
    app = open_place(visit("models"), tmp_path / "x.yaml")
    assert [sentence in error.value.replace("\\", "") for error in app.error] == [True], app.error


def test_a_file_of_another_kind_is_one_sentence(visit: Callable[..., AppTest], tiny_zoo: Path) -> None:
    app = open_place(visit("models"), tiny_zoo / "Colours.npz")
    assert ["let it end in .yaml" in error.value.replace("\\", "") for error in app.error] == [True]


def test_a_study_of_a_manifest_is_saved_too(visit: Callable[..., AppTest], tiny_zoo: Path, tmp_path: Path) -> None:
    app = visit("models")
    path = tmp_path / "of-manifest.yaml"
    app.text_input(key=f"save_path_{tiny_zoo / 'study.yaml'}").set_value(str(path)).run()
    app.button(key="save").click().run()
    assert read_study_file(path).config == config_from_manifest(tiny_zoo)


def test_an_edited_study_file_of_a_session_does_not_leak_into_another(
    visit: Callable[..., AppTest], study_yaml: Path
) -> None:
    first, second = visit("models"), visit("models")
    open_place(first, study_yaml)
    first.text_area(key=f"study_text_{study_yaml}").input("name: x\n").run()
    assert first.error
    assert not open_place(second, study_yaml).error


def test_language_models_go_the_whole_way(visit: Callable[..., AppTest], home: Path, tmp_path: Path) -> None:
    folder = make_language_folder(tmp_path / "language")
    app = open_place(visit("models"), folder)
    assert app.selectbox(key=f"family_{folder}").value == "language"
    assert f"architecture_{folder}" not in {found.key for found in app.selectbox}, "the folder tells"
    check(app)
    assert "All 2 models fit" in app.success[0].value
    assert list(frame_with(app, "Task")["Metrics"]) == ["loss", "loss"]
    assert "Classes" not in frame_with(app, "Task")
    (quotes, *_) = [found.value for found in app.get("html") if 'class="quotes"' in found.value]
    assert any(word in quotes for word in WORDS)
    app.button(key="create_study").click().run()
    (study,) = Store(home).studies.all()
    app = visit("evaluate", study=study.id)
    app.number_input(key=f"map_points_{study.id}_0").set_value(8).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, study.id)
    app = visit("trade_offs", study=study.id)
    assert not app.error
    (tiles,) = [found.value for found in app.get("html") if 'class="tiles pick"' in found.value]
    # Untrained models guess among all words.
    assert "%" not in tiles.replace("% of the single model", "").replace("% of pre-trained", "")
    assert f"<b>{np.log(len(WORDS) + 2):.1f}"[:5] in tiles
    app.button(key="export").click().run()
    app = wait_for_jobs(visit("export", study=study.id), study.id)
    assert not app.error, [error.value for error in app.error]
    (pick,) = Store(home).picks.all(study.id)
    assert pick.exported.name == "model.safetensors"
    assert f"{pick.exported.parent.name}/" in said(app)
    assert "from_pretrained" in said(app)
    links = [found.proto.url for found in app.get("link_button")]
    assert f"/download/{pick.id}/config.json" in links
