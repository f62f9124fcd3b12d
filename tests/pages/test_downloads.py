"""The addresses under which exported files are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Study


@pytest.fixture
def client(home: Path) -> TestClient:  # noqa: ARG001 - the store lies there
    from pages.parts.shared import server

    return TestClient(Starlette(routes=server.ROUTES))


def exported(study: Study, folder: Path, name: str) -> int:
    """A pick whose export is made up."""
    from pages.parts.shared import state

    folder.mkdir()
    (folder / name).write_bytes(b"weights")
    merge = state.store().merges.all(study.id)[0]
    pick = state.store().picks.add(merge.id, np.array([0.5, 0.5]), {"kind": "point"})
    state.store().picks.update(pick.id, exported=folder / name)
    return pick.id


def test_the_files_of_a_folder_are_downloaded_by_name(
    client: TestClient, measured_study: Study, tmp_path: Path
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
    client: TestClient, measured_study: Study, tmp_path: Path
) -> None:
    pick = exported(measured_study, tmp_path / "exports", "merged-1.safetensors")
    (tmp_path / "exports" / "merged-1.README.md").write_text("card")
    (tmp_path / "exports" / "merged-12.README.md").write_text("other")
    assert client.get(f"/download/{pick}/merged-1.README.md").text == "card"
    assert client.get(f"/download/{pick}/merged-12.README.md").status_code == 404


def test_what_was_not_exported_or_is_gone_is_one_sentence(
    client: TestClient, measured_study: Study, tmp_path: Path
) -> None:
    from pages.parts.shared import state

    answer = client.get("/download/7")
    assert answer.status_code == 404
    assert "pick" in answer.text
    merge = state.store().merges.all(measured_study.id)[0]
    pick = state.store().picks.add(merge.id, np.array([0.25, 0.75]), {"kind": "point"})
    answer = client.get(f"/download/{pick.id}")
    assert (answer.status_code, answer.text) == (404, f"Pick {pick.id} has not been exported: export it first.")
    state.store().picks.update(pick.id, exported=tmp_path / "gone.safetensors")
    answer = client.get(f"/download/{pick.id}")
    assert answer.status_code == 404
    assert "is gone: export the pick again" in answer.text


def test_what_a_merges_preparation_wrote_is_downloaded(client: TestClient, measured_study: Study) -> None:
    from pages.parts.shared import state

    store = state.store()
    merge = store.merges.add(measured_study.id, "pareto_merging", {})
    address = f"/download/merge/{merge.id}"
    answer = client.get(address)
    assert answer.status_code == 404
    assert "prepare it first" in answer.text
    file = store.merges.state_file(merge.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"tensors")
    assert client.get(address).status_code == 404, "its preparation hasn't ended"
    store.merges.set_prepared(merge.id, 1.0, 0)
    answer = client.get(address)
    assert answer.content == b"tensors"
    assert f'filename="{file.name}"' in answer.headers["content-disposition"]
    assert client.get("/download/merge/99").status_code == 404
    assert client.get(f"{address}/{file.name}").status_code == 404
