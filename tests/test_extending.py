"""A newcomer's change: one file in a package of their own adds a merge, which is then everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.config.study_file import StudyFile, study_text

ROOT = Path(__file__).parents[1]

MERGE = '''
from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import setting, settings


@register
class Clipped(LinearMerge):
    """Clip the entries of each task vector to a few standard deviations."""

    name = "clipped"
    title = "Clipped task arithmetic"

    @settings
    class Settings:
        deviations: float = setting(3.0, above=0, help="How many standard deviations an entry may be large.")

    def transform(self, change):
        limit = self.settings.deviations * float(change.std())
        return change.clamp(-limit, limit)
'''

# All in one process: each would load torch anew.
USED = f"""
import contextlib, runpy, sys
from mapmerge_core.__main__ import main

assert main(["run", "study.yaml", "--device", "cpu", "--json"]) == 0
with open("compared.json", "w") as file, contextlib.redirect_stdout(file):
    assert main(["compare", "Two", "--no-merges", "--json"]) == 0
sys.argv = ["generate.py", "reference"]
runpy.run_path({str(ROOT / "docs" / "generate.py")!r}, run_name="__main__")

from streamlit.testing.v1 import AppTest

app = AppTest.from_file({str(ROOT / "app.py")!r}, default_timeout=60).run()
for page in ("evaluate", "compare"):
    app.switch_page(f"pages/{{page}}.py")
    app.query_params["study"] = "1"
    app.run()
    assert not app.exception and not app.error, (app.exception, app.error)
    if page == "evaluate":
        [box] = [box for box in app.selectbox if str(box.key).startswith("merge_1_")]
        assert "Clipped task arithmetic" in box.options, box.options
        box.set_value("clipped").run()
        assert [field for field in app.number_input if str(field.key).startswith("clipped_deviations_")]
    else:
        [table] = [frame.value for frame in app.dataframe if "model" in frame.value]
        assert "Clipped task arithmetic (deviations 2)" in list(table["model"]), list(table["model"])
from pages.parts.shared import state
state.jobs().close()
print("seen")
"""


@pytest.fixture
def python(tmp_path: Path, tiny_zoo: Path) -> Callable[..., str]:
    """Runs Python where the newcomer's package is installed; returns what it printed."""
    package = tmp_path / "site"
    info = package / "newcomer-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "newcomer.py").write_text(MERGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mapmerge.merges]\nclipped = newcomer\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
        "MAPMERGE_HOME": str(tmp_path / "home"),
        "MAPMERGE_ZOO": str(tiny_zoo),
    }

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_one_file_adds_a_merge_everywhere(python: Callable[..., str], tiny_zoo: Path, tmp_path: Path):
    merges = json.loads(python("-m", "mapmerge_core", "merges", "--json"))["merges"]
    assert [merge["title"] for merge in merges if merge["name"] == "clipped"] == ["Clipped task arithmetic"]

    text = study_text(StudyFile(name="Two", config=config_from_manifest(tiny_zoo, ["Colours", "Stripes"])), tmp_path)
    text = text[: text.index("run:")] if "run:" in text else text
    study = tmp_path / "study.yaml"
    study.write_text(text + "run: {merge: {name: clipped, deviations: 2.0}, method: {name: map, points: 8}}\n")
    assert python("-c", USED).strip().endswith("seen")
    compared = json.loads((tmp_path / "compared.json").read_text())
    names = [row["name"] for row in compared["rows"]]
    assert "MAP on Clipped task arithmetic (deviations 2) (points 8)" in names
    assert "Clipped task arithmetic (deviations 2)" in names

    page = (tmp_path / "reference" / "merges.md").read_text()
    assert "## Clipped task arithmetic" in page
    assert "| `deviations` | `3.0` | a number above 0 | How many standard deviations" in page


def test_the_how_to_shows_this_merge():
    code = MERGE.strip()
    how_to = (ROOT / "docs" / "add-a-merge.md").read_text()
    body = code[code.index("@register") :].replace("(self, change)", "(self, change: Tensor) -> Tensor")
    assert body in how_to


def test_a_package_that_can_not_be_imported_is_named(python: Callable[..., str], tmp_path: Path):
    (tmp_path / "site" / "newcomer.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(AssertionError, match="of the package newcomer can't be imported"):
        python("-m", "mapmerge_core", "merges")
