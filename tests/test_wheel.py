"""The wheel is installed in an environment of its own, outside the checkout, and used."""

from __future__ import annotations

import json
import os
import site
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel, which borrows the libraries of the environment that tests run in."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    [wheel] = folder.glob("mapmerge-*.whl")
    place = folder / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    install = ["install", "--quiet", "--no-deps", "--disable-pip-version-check", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), *install], check=True)
    packages = next(place.glob("lib/python*/site-packages"))
    assert {path.name.split("-")[0] for path in packages.iterdir()} <= {"mapmerge_core", "mapmerge"}
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return place


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """How a command is started there, outside the checkout."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAPMERGE_ZOO")}
    return {"cwd": tmp_path, "env": {**variables, "MAPMERGE_HOME": str(tmp_path / "home")}}


def test_the_library_is_the_installed_one(environment: Path, settings: dict[str, object]):
    code = "import mapmerge_core as mm; print(mm.__file__, mm.__version__, len(list(mm.DEMO_ZOO.glob('*.npz'))))"
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code], **settings, capture_output=True, text=True, check=False
    )
    file, version, n_datasets = done.stdout.split()
    assert Path(file).is_relative_to(environment)
    assert version
    assert int(n_datasets) >= 8


def test_the_demo_runs(environment: Path, settings: dict[str, object]):
    command = [environment / "bin" / "mapmerge", "demo", "--tasks", "2", "--points", "8", "--json"]
    done = subprocess.run(command, **settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["export"]).is_file()


def test_the_dashboard_opens(environment: Path, settings: dict[str, object]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [environment / "bin" / "mapmerge", "ui", "--port", str(port), "--no-browser"]
    with subprocess.Popen(
        command, **settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                        assert answer.read() == b"ok"
                        break
                except OSError:
                    assert server.poll() is None, server.stdout.read().decode()
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        finally:
            os.killpg(server.pid, 15)
