"""Each page by itself: what it says when there is nothing, and when something is wrong."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from mapmerge_core.studies.spec import spec_from_manifest
from mapmerge_core.studies.store import Store
from tests.pages.conftest import TIMEOUT, texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.rows import StudyRow


@pytest.mark.parametrize("page", ["evaluate", "trade_offs", "export"])
def test_without_studies_a_page_says_where_to_go(visit: Callable[..., AppTest], page: str) -> None:
    app = visit(page)
    assert "No studies yet" in texts(app)
    assert [link.proto.label for link in app.get("page_link")] == ["Go to Studies"]


def test_home_without_studies_invites(visit: Callable[..., AppTest]) -> None:
    app = visit("studies")
    assert "Nothing here yet" in texts(app)
    assert "Colours · Stripes" in texts(app), "a demo's card names its tasks"


def test_home_without_demos_says_why(
    visit: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAPMERGE_ZOO", str(tmp_path))
    assert "manifest.json" in visit("studies").info[0].value


@pytest.mark.parametrize(
    ("page", "title", "link"),
    [
        ("trade_offs", "Nothing measured yet", "Go to Evaluate"),
        ("export", "No pick yet", "Go to Trade-offs"),
    ],
)
def test_a_fresh_study_says_what_comes_first(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path, page: str, title: str, link: str
) -> None:
    study = Store(home).create_study("Fresh", spec_from_manifest(tiny_zoo))
    app = visit(page, study=study.id)
    assert title in texts(app)
    assert [found.proto.label for found in app.get("page_link")] == [link]


def test_an_unknown_study_in_the_address_is_said_and_another_shown(
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    app = visit("evaluate", study=99)
    assert "There is no study 99" in app.warning[0].value
    assert app.selectbox(key="study").value == measured_study.id


def test_a_study_is_deleted_only_after_asking(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    app = visit("studies")
    app.button(key=f"delete_{measured_study.id}").click().run()
    assert len(Store(home).studies()) == 1
    app.button(key="delete_confirm").click().run()
    assert Store(home).studies() == []


def test_markdown_in_a_study_name_is_shown_as_typed(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    Store(home).create_study("**bold** <b>", spec_from_manifest(tiny_zoo))
    assert r"\*\*bold\*\* \<b\>" in texts(visit("studies"))


def check(app: AppTest) -> AppTest:
    """Presses Check and waits for its answer."""
    import time

    app.button(key="check").click().run()
    deadline = time.monotonic() + TIMEOUT
    while "Reading and comparing" in texts(app):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        app.run()
    assert not app.exception, app.exception
    return app


def test_models_that_fit_become_a_study(visit: Callable[..., AppTest], home: Path) -> None:
    app = check(visit("models"))
    assert "All 3 models fit" in app.success[0].value
    frame = app.dataframe[0].value
    assert list(frame["Model"]) == ["Colours", "Stripes", "Light"]
    assert (frame["L1"] > 0).all()
    app.text_input(key="study_name").set_value("Mine").run()
    app.button(key="create_study").click().run()
    assert app.title[0].value == "Evaluate"
    assert Store(home).studies()[0].name == "Mine"


def test_a_folder_without_a_manifest_is_put_together(
    visit: Callable[..., AppTest], tiny_zoo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_zoo, tmp_path / "loose")
    (folder / "manifest.json").unlink()
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    assert app.selectbox(key="pretrained").value == "pretrained.safetensors"
    assert "All 3 models fit" in check(app).success[0].value


def test_a_checkpoint_that_does_not_fit_is_one_sentence(
    visit: Callable[..., AppTest], tiny_zoo: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_zoo, tmp_path / "broken")
    tensors = load_file(folder / "Light.safetensors")
    tensors.pop("visual.conv1.weight")
    save_file(tensors, folder / "Light.safetensors")
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    check(app)
    assert len(app.error) == 1
    message = app.error[0].value.replace("\\", "")
    assert "Light" in message
    assert "visual.conv1.weight" in message


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "holds 0 checkpoints"),
        (
            lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("{")),
            "can't be read as JSON",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text(json.dumps({"name": "x"}))),
            "has no 'architecture'",
        ),
    ],
)
def test_a_folder_that_is_no_zoo_is_one_sentence(
    visit: Callable[..., AppTest], tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    folder = tmp_path / "folder"
    make(folder)
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    assert len(app.error) == 1
    assert sentence in app.error[0].value.replace("\\", "")
