"""A corpus like the tutorial's: documents of 30 to 225 Arabic words, in the shape that Haystack writes."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEAST_WORDS, MOST_WORDS = 30, 225
# The tutorial's files: the first is the largest.
TUTORIAL_FILES = 23
TUTORIAL_DOCUMENTS = 2_094_596
TUTORIAL_LARGEST = 243_068

# Short and long in the proportion of prose: ten bytes a word with its space.
_PROSE = (
    "في من على إلى عن مع كان كانت هذا هذه ذلك التي الذي بعد قبل بين حتى عند منذ أن إن لا ما هو هي كما أو ثم قد كل "
    "بعض غير أكثر أول عام سنة يوم شهر مدينة قرية نهر بحر جبل وادي سماء أرض شمس قمر ليل نهار ماء هواء نار تراب شجرة "
    "زهرة طائر سمكة أسد جمل حصان بيت باب نافذة طريق جسر سوق مدرسة جامعة كتاب قلم ورقة رسالة قصيدة حكاية تاريخ "
    "جغرافيا فلسفة رياضيات هندسة كيمياء فيزياء موسيقى مسرح سينما صحيفة إذاعة حاسوب شبكة برنامج معالج ذاكرة الدولة "
    "الحكومة الوزارة البرلمان الدستور القانون المحكمة الجيش الشرطة الاقتصاد التجارة الصناعة الزراعة السياحة الطاقة "
    "المياه البيئة المناخ الصحة المستشفى الطبيب المريض الدواء المختبر الباحثون العلماء المهندسون المعلمون الطلاب "
    "العاملون السكان المهاجرون اللاجئون المواطنون يكتب يقرأ يسافر يعمل يدرس يبحث يكتشف يخترع يبني يزرع يصنع ينتج "
    "ويستخدم وتستخدم ويعتبر وتعتبر بالإضافة والمحافظة للمحافظة والمستشفيات الاستقلال الاستكشافات والاكتشافات "
    "الإمبراطورية المستعمرات والاتفاقيات الدبلوماسية"
)
_WORDS = _PROSE.split()


def documents(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield documents, all of different texts; the same for the same seed."""
    rng = random.Random(seed)
    stream = rng.choices(_WORDS, k=50_000)
    for number in range(count):
        words = rng.randint(LEAST_WORDS, MOST_WORDS)
        start = rng.randrange(len(stream) - words)
        name = f"{seed}-{number}"
        yield {
            "id": name,
            "content": " ".join((*stream[start : start + words - 1], name)),
            "content_type": "text",
            "meta": {"title": stream[start], "url": f"https://ar.wikipedia.org/wiki?curid={number}"},
            "id_hash_keys": ["content"],
            "score": None,
            "embedding": None,
        }


def write_file(path: Path, count: int, seed: int = 0) -> None:
    """Write one NDJSON file; compressed if its name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compressed = path.suffix == ".gz"
    with gzip.open(path, "wt", 1, encoding="utf-8") if compressed else path.open("w", encoding="utf-8") as file:
        for document in documents(count, seed):
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def write_corpus(folder: Path, counts: list[int], suffix: str = "") -> None:
    """Write one file for each count, unless the folder has this corpus already."""
    told = folder / "corpus.txt"
    description = f"{counts} {suffix}"
    if told.exists() and told.read_text() == description:
        return
    for number, count in enumerate(counts):
        write_file(folder / f"wiki_{number:02d}.ndjson{suffix}", count, seed=number)
    told.write_text(description)


def tutorial_counts(documents: int = TUTORIAL_DOCUMENTS) -> list[int]:
    """How many documents each of the tutorial's files has, or would have if there were fewer in all."""
    largest = documents * TUTORIAL_LARGEST // TUTORIAL_DOCUMENTS
    others = TUTORIAL_FILES - 1
    ends = [(documents - largest) * step // others for step in range(others + 1)]
    return [largest, *(end - start for start, end in itertools.pairwise(ends))]


def files_of(folder: Path) -> list[Path]:
    """The corpus's files."""
    return sorted(folder.glob("*.ndjson*"))
