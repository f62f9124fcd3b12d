"""The addresses under which exported files are downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mapmerge_core.studies.config.run import RunSettings

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.store.rows import StudyRow


@pytest.fixture
def client(home: Path) -> TestClient:  # noqa: ARG001 - the store lies there
    from pages.parts.shared import server

    return TestClient(Starlette(routes=server.ROUTES))


def exported(study: StudyRow, folder: Path, name: str) -> int:
    """A pick whose export is made up."""
    from pages.parts.shared import state

    folder.mkdir()
    (folder / name).write_bytes(b"weights")
    pick = state.store().add_pick(study.id, [0.5, 0.5], {"kind": "point"})
    state.store().update_pick(pick.id, exported=folder / name)
    return pick.id


def test_the_files_of_a_folder_are_downloaded_by_name(
    client: TestClient, measured_study: StudyRow, tmp_path: Path
) -> None:
    pick = exported(measured_study, tmp_path / "merged", "model.safetensors")
    (tmp_path / "merged" / "config.json").write_text("{}")
    (tmp_path / "merged" / "inner").mkdir()
    (tmp_path / "secret").write_text("secret")
    answer = client.get(f"/download/{pick}")
    assert answer.content == b"weights"
    assert 'filename="model.safetensors"' in answer.headers["content-disposition"]
    assert client.get(f"/download/{pick}/config.json").content == b"{}"
    for wanted in ("..%2Fsecret", "../secret", "inner", "none", "%2Fetc%2Fpasswd"):
        assert client.get(f"/download/{pick}/{wanted}").status_code == 404, wanted


def test_of_a_file_only_those_of_its_name_are_beside_it(
    client: TestClient, measured_study: StudyRow, tmp_path: Path
) -> None:
    pick = exported(measured_study, tmp_path / "exports", "merged-1.safetensors")
    (tmp_path / "exports" / "merged-1.README.md").write_text("card")
    (tmp_path / "exports" / "merged-12.README.md").write_text("other")
    assert client.get(f"/download/{pick}/merged-1.README.md").text == "card"
    assert client.get(f"/download/{pick}/merged-12.README.md").status_code == 404


def test_what_was_not_exported_is_one_sentence(client: TestClient) -> None:
    answer = client.get("/download/7")
    assert answer.status_code == 404
    assert "pick" in answer.text


def test_a_learned_sets_pick_has_an_address_of_its_own(
    client: TestClient, measured_study: StudyRow, tmp_path: Path
) -> None:
    from pages.parts.shared import state

    store = state.store()
    run = store.create_run(measured_study.id, RunSettings(points=2), "pareto_merging")
    pick = store.add_learned_pick(run.id, np.array([0.25, 0.75]), {"kind": "point"})
    address = f"/download/learned/{pick.id}"
    answer = client.get(address)
    assert (answer.status_code, answer.text) == (
        404,
        f"Pick {pick.id} has not been exported: export it first.",
    )
    file = tmp_path / "merged-1.safetensors"
    file.write_bytes(b"weights")
    (tmp_path / "merged-1.README.md").write_text("card")
    store.update_learned_pick(pick.id, exported=file)
    assert client.get(address).content == b"weights"
    assert client.get(f"{address}/merged-1.README.md").text == "card"
    file.unlink()
    answer = client.get(address)
    assert answer.status_code == 404
    assert "is gone: export the pick again" in answer.text
    assert client.get("/download/learned/99").status_code == 404


def test_a_learned_set_is_downloaded_whole(client: TestClient, measured_study: StudyRow) -> None:
    from pages.parts.shared import state

    store = state.store()
    run = store.create_run(measured_study.id, RunSettings(points=2), "pareto_merging")
    address = f"/download/set/{run.id}"
    answer = client.get(address)
    assert (answer.status_code, answer.text) == (
        404,
        f"Run {run.id} has no learned set: run Pareto Merging to its end first.",
    )
    file = store.learned_file(run.id)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"tensors")
    answer = client.get(address)
    assert answer.content == b"tensors"
    assert f'filename="{file.name}"' in answer.headers["content-disposition"]
    assert client.get("/download/set/99").status_code == 404
    assert client.get(f"{address}/learned-1.safetensors").status_code == 404
