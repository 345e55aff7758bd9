"""The built wheel carries the whole package, data included, and runs without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources so that the working tree stays clean."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(argv, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = (source / "dist").iterdir()
    return built


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    package = ROOT / "src"
    ours = {
        path.relative_to(package).as_posix()
        for path in (package / "rosa").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    inside = {name for name in names if name.startswith("rosa/")}
    assert inside == ours
    assert {
        "rosa/py.typed",
        "rosa/methods/rosa.yaml",
        "rosa/evaluate/task_files/gsm8k.yaml",
        "rosa/assets/models/Qwen2.5-7B.json",
    } <= inside
    others = names - inside
    assert all(".dist-info/" in name for name in others)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in others)


def test_the_wheel_stays_small_enough_for_a_package_with_one_embedded_model(wheel):
    assert wheel.stat().st_size < 20e6


def test_the_wheel_runs_without_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, rosa; from rosa.cli.main import main; "
        "assert rosa.__file__.startswith(sys.argv[1]), rosa.__file__; "
        "sys.exit(main(['params', 'Qwen2.5-0.5B', '--methods', 'rosa', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"trainable": 4270080' in done.stdout
