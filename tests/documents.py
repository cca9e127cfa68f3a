"""Documents for tests, made from a seed: words of two scripts, in nested folders."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path

_SENTENCES = (
    "the river stream carries water from the mountain to the sea and every city beside it learned to read its moods "
    "النهر يجري من الجبل إلى البحر وكل مدينة على ضفافه تعلمت أن تقرأ أحواله في الليل والنهار"
)
WORDS = _SENTENCES.split()


def documents(count: int, seed: int, words: tuple[int, int] = (5, 60)) -> Iterable[dict[str, object]]:
    """Yield documents whose texts are all different; every third one is in the shape that has its field already."""
    rng = random.Random(seed)
    for number in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(*words)))
        document: dict[str, object] = {"id": f"{seed}-{number}", "content": f"{text} {seed}-{number}"}
        if number % 3 == 0:
            document |= {"embedding": None, "meta": {"embedding": "not this one", "n": number}}
        yield document


def write_ndjson(path: Path, lines: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            file.write(json.dumps(line, ensure_ascii=number % 5 == 0) + "\n")


def write_corpus(root: Path, files: int, per_file: int, **how: tuple[int, int]) -> None:
    """Write files in folders of three depths."""
    for number in range(files):
        folder = root / Path(*"abc"[: number % 3])
        write_ndjson(folder / f"wiki_{number:02d}.ndjson", documents(per_file, seed=number, **how))


def mixed_corpus(per_file: int = 150, first_seed: int = 0) -> dict[str, bytes]:
    """Files in three depths, plain and compressed, with a dead letter each, by name; two of them have no document."""
    found = {}
    for number, name in enumerate(["wiki_00.ndjson", "a/wiki_01.jsonl.gz", "a/b/wiki_02.json.bz2", "كلمة/x y.ndjson"]):
        lines = documents(per_file, seed=first_seed + number)
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode() + b"no json\n"
        found[name] = gzip.compress(data, mtime=0) if ".gz" in name else bz2.compress(data) if ".bz2" in name else data
    return found | {"wiki_03.ndjson": b"", "wiki_04.ndjson": b'{"content": 4}\n'}
