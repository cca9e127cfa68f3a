"""The package as it is installed: built, unpacked, and used from a folder where the sources are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    str(path.parent.relative_to(ROOT))
    for top in ("pipeline", "transforms")
    for path in (ROOT / top).rglob("__init__.py")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: building leaves files beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pipeline", "transforms", "tests", "run_scripts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = source / "dist"
    _run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source))
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    _run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def _run(*arguments: str, folder: Path = Path("/"), **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    assert {str(Path(name).parent) for name in code} == PACKAGES
    files = [path for package in PACKAGES for path in (ROOT / package).iterdir() if path.is_file()]
    left_out = {".md", ".png"}  # the READMEs and their picture
    sources = {str(path.relative_to(ROOT)) for path in files if path.suffix not in left_out}
    assert code == sources  # what the code reads beside it, and the marks that it is typed, included
    assert {"pipeline/py.typed", "transforms/py.typed"} < code
    assert any(name.endswith("LICENSE") for name in names)


def test_every_module_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for package in ("pipeline", "transforms")
        for path in (installed / package).rglob("*.py")
    )
    assert len(modules) > 30
    program = (
        "import importlib, json, sys\n"
        "modules = [importlib.import_module(name) for name in json.loads(sys.argv[1])]\n"
        "print(json.dumps([module.__file__ for module in modules]))"
    )
    # A module named __main__ is imported like any other: what it does stands behind a guard.
    shown = _run("-c", program, json.dumps(modules), folder=tmp_path, PYTHONPATH=str(installed))
    assert all(file.startswith(f"{installed}/") for file in json.loads(shown))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["verify", "--help"], ["serve", "--help"]])
def test_the_command_answers(installed: Path, tmp_path: Path, arguments: list[str]) -> None:
    shown = _run(str(installed / "bin" / "tayyar"), *arguments, folder=tmp_path, PYTHONPATH=str(installed))
    assert shown.startswith("usage: tayyar")


def test_the_version_is_the_packages(wheel: Path, installed: Path, tmp_path: Path) -> None:
    program = "from importlib import metadata; print(metadata.version('tayyar'))"
    version = _run("-c", program, folder=tmp_path, PYTHONPATH=str(installed)).strip()
    assert wheel.name == f"tayyar-{version}-py3-none-any.whl"
