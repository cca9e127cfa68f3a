"""The examples of `pipeline/README.md` that read Parquet run as they stand, and have every vector bit for bit."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import ROOT, tayyar_here
from tests.documents import documents, write_ndjson
from tests.tei_simulator.hash_model import expected_vectors

PAGE = (ROOT / "pipeline/README.md").read_text(encoding="utf-8").partition("### Parquet\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
VECTOR_TYPES = ("float32", "float16")
LIBRARIES = ("datasets", "duckdb", "polars", "pyarrow", "pandas", "faiss")
SAVE = """
import numpy as saving
matrix = index.reconstruct_n(0, index.ntotal) if "index" in globals() else vectors
saving.savez("read.npz", texts=saving.array(list(map(str, texts))), vectors=saving.stack(list(matrix)))
"""
# Each folder is read as in a process of its own; in one process, since to import most of these libraries takes seconds.
IN_EACH_FOLDER = """
import os, sys
for folder in sys.argv[2:]:
    os.chdir(folder)
    exec(sys.argv[1], {})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    place = tmp_path_factory.mktemp("reading")
    for name, seed in (("a.ndjson", 1), ("b/c.ndjson", 2)):
        write_ndjson(place / "in" / name, documents(60, seed=seed))
    for vector_type in VECTOR_TYPES:
        output = place / vector_type / "embedded"
        options = ("--output_format", "parquet", "--vector_type", vector_type, "--shard_bytes", 10_000)
        tayyar_here("run", "--input", place / "in", "--output", output, "--endpoint", hash_tei, *options)
    return place


def test_every_library_has_its_example() -> None:
    assert len(EXAMPLES) == len(LIBRARIES)
    assert all(f"import {library}" in example for library, example in zip(LIBRARIES, EXAMPLES, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_example_has_every_vector(
    folder: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not here; pip install '.[dev]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    program = EXAMPLES[LIBRARIES.index(library)] + SAVE
    folders = [str(folder / vector_type) for vector_type in VECTOR_TYPES]
    command = [sys.executable, "-c", IN_EACH_FOLDER, program, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for vector_type in VECTOR_TYPES:
        with np.load(folder / vector_type / "read.npz") as read:
            texts, vectors = read["texts"].tolist(), read["vectors"]
        (folder / vector_type / "read.npz").unlink()  # the next library's is its own
        assert len(texts) == 120
        expected = expected_vectors(texts).astype(vector_type)
        assert vectors.astype(vector_type).tobytes() == expected.tobytes()
        assert np.array_equal(vectors.astype(np.float64), expected.astype(np.float64))
