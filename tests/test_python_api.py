"""What a Python user sees: quick to import, complete, and as the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mapmerge_core
from mapmerge_core.studies.config.study_file import parse_study

ROOT = Path(__file__).parents[1]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MAPMERGE_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_readmes_example_runs(tmp_path: Path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- example -->\s*```python\n(.*?)```", readme, flags=re.DOTALL)
    assert code.count('"uniform", 30,') == 1
    code = code.replace('"uniform", 30,', '"uniform", 12,')  # half a minute less
    result = run_python(code + "\nprint(len(front), *best, *Y.mean(axis=0))", tmp_path)
    assert result.returncode == 0, result.stderr
    size, *numbers = result.stdout.split()
    assert int(size) >= 10
    assert all(0 <= float(number) <= 1 for number in numbers)
    recipe = mapmerge_core.read_recipe(tmp_path / "merged.safetensors")
    assert list(recipe.coefficients.values()) == pytest.approx([float(number) for number in numbers[:2]])


def test_the_readme_shows_the_family_that_is_tested():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- family -->\s*```python\n(.*?)```", readme, flags=re.DOTALL)
    assert code in (ROOT / "tests" / "tasks" / "own_family.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 45


def test_the_readmes_studies_are_studies(tmp_path: Path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    families = [parse_study(text, tmp_path).config.family for text in texts]
    assert families == ["clip", "language", "classifier"]


@pytest.mark.parametrize("name", mapmerge_core.__all__)
def test_every_name_is_there(name: str):
    assert getattr(mapmerge_core, name) is not None
    assert name in dir(mapmerge_core)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Stroe'"):
        _ = mapmerge_core.Stroe


def test_importing_is_quick_and_studies_do_not_need_torch(tmp_path: Path):
    code = (
        "import sys, mapmerge_core as mm\n"
        "heavy = ('numpy', 'torch', 'sqlalchemy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "mm.Store().studies.all(), mm.analyse, mm.compare, mm.read_study_file, mm.RunConfig, mm.StudyConfig\n"
        "mm.find_front, mm.QuadraticSurrogate, mm.parse_rule, mm.apply_rule, mm.hypervolume, mm.Box, mm.Simplex\n"
        "list(mm.MERGES), list(mm.METHODS), list(mm.METRICS), list(mm.FAMILIES), list(mm.READERS), list(mm.LINKS)\n"
        "print('torch' in sys.modules, 'streamlit' in sys.modules)"
    )
    result = run_python(code, tmp_path)
    assert result.stdout == "[]\nFalse False\n", result.stderr
