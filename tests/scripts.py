"""What the scripts of `run_scripts` find when a test calls them: an environment that is made already, and programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.commands import ROOT


def executable(path: Path, script: str) -> Path:
    """Write a shell script that can be called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def made_environment(folder: Path, extra: str = "dev") -> dict[str, str]:
    """Make the environment that the scripts would make, out of this one, and return the variable that names it."""
    executable(folder / "bin/python", f'exec {sys.executable} "$@"')
    executable(folder / "bin/tayyar", f'exec {sys.executable} -m pipeline "$@"')
    checksum = subprocess.run(["cksum"], input=(ROOT / "setup.py").read_bytes(), capture_output=True, check=True).stdout
    (folder / f"tayyar-{extra}").write_text(f"{ROOT} {checksum.decode()}")
    return {"TAYYAR_VENV": str(folder)}


def only(folder: Path, programs: Iterable[str]) -> None:
    """Fill a folder that is to be the whole PATH with some of this machine's programs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in programs:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
