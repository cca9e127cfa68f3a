"""Whether the vectors are good for what they are made for: finding a question's own paragraph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import requests

from pipeline.embedded_tei.process import EmbeddedTei
from tests.commands import ROOT, tayyar

DATA = ROOT.parent / "shared/data"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the XQuAD paragraphs beside the checkout, in ../shared/data")
def test_arabic_questions_find_their_paragraph(tmp_path: Path) -> None:
    questions = [json.loads(line) for line in (DATA / "xquad-ar-questions.ndjson").read_bytes().splitlines()]
    with EmbeddedTei() as server:
        options = ("--input", DATA / "xquad-ar.ndjson", "--output", tmp_path / "out", "--endpoint", server.url)
        tayyar("run", *options, timeout=1000)
        asked = []
        for first in range(0, len(questions), 8):
            inputs = [question["question"] for question in questions[first : first + 8]]
            body = {"inputs": inputs, "prompt_name": "query"}
            asked += requests.post(f"{server.url}/embed", json=body, timeout=100).json()
    lines = (tmp_path / "out/data/xquad-ar-00000.ndjson").read_bytes().splitlines()
    documents = [json.loads(line) for line in lines]
    assert len(documents) == len(questions) == 240
    scores = np.array(asked) @ np.array([document["embedding"] for document in documents]).T
    found = [documents[best]["id"] for best in scores.argmax(axis=1)]
    assert sum(id_ == question["document"] for id_, question in zip(found, questions, strict=True)) >= 205
