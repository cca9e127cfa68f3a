from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shards import folder
from transforms.elements import Document, Reason, RequestStatistics
from transforms.embed_shards import assemble
from transforms.ndjson.splice import embedded_lines, json_key
from transforms.output.folder import OutputFolder
from transforms.reuse.index import FormerFile, IndexHandle, ReuseIndex, make_index, write_index
from transforms.reuse.keys import KEY_BYTES, encode_keys, key_of
from transforms.reuse.reuse import FILES_ALWAYS_OPENED, count_known, distinct, find_vectors
from transforms.tei.tasks import Embeddings, Rejection

DIMENSIONS = 3


def vector_of(text: str) -> list[float]:
    return [float(len(text) + 1), *np.frombuffer(key_of(text)[:2], np.uint8).tolist()]


def output_of(output: OutputFolder, name: str, texts: Sequence[str]) -> FormerFile:
    """An output file as WriteEmbedded makes it."""
    lines = [b'{"content":%s}' % json_key(text) for text in texts]
    vectors = np.array([vector_of(text) for text in texts], dtype=np.float32).reshape(len(texts), DIMENSIONS)
    documents = [Document(0, line, text, False) for line, text in zip(lines, texts, strict=True)]
    written = output.write(name, embedded_lines(documents, vectors, json_key("embedding")))
    return FormerFile(output.path(name), written.bytes, written.crc32c, "content", "embedding")


def index_of(output: OutputFolder, files: Sequence[Sequence[str]]) -> tuple[IndexHandle | None, list[FormerFile]]:
    made = [output_of(output, f"data/f-{number:05d}.ndjson", texts) for number, texts in enumerate(files)]
    entries = [(file, encode_keys(texts)) for file, texts in zip(made, files, strict=True)]
    index = make_index(entries)
    return (None if index is None else write_index(output, index, "run")), made


def opened(handle: IndexHandle | None) -> ReuseIndex:
    assert handle is not None
    index = handle.open()
    assert index is not None
    return index


# A blank text has no vector.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).filter(str.strip)


@given(st.lists(st.lists(TEXTS, max_size=8), max_size=4), st.lists(TEXTS, max_size=12, unique=True))
def test_what_is_found_is_each_texts_own_vector_and_all_that_there_is(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], texts: list[str]
) -> None:
    output = folder(tmp_path_factory.mktemp("x"))
    handle, _ = index_of(output, files)
    known = {text for file in files for text in file}
    assert (handle is None) is (not known)
    if handle is None or not texts:
        return
    found = find_vectors(texts, opened(handle), DIMENSIONS)
    assert found.mask.tolist() == [text in known for text in texts]
    assert count_known(texts, opened(handle)) == found.mask.sum()
    for text, vector, present in zip(texts, found.vectors, found.mask, strict=True):
        assert vector.tolist() == (vector_of(text) if present else [0.0] * DIMENSIONS)


def test_two_texts_with_one_key_are_told_apart(tmp_path: Path) -> None:
    output = folder(tmp_path)
    file = output_of(output, "data/f-00000.ndjson", ["former"])
    index = make_index([(file, key_of("new"))])
    assert index is not None
    assert not find_vectors(["new"], index, DIMENSIONS).mask.any()


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_a_damaged_file_gives_nothing_and_another_one_does(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    output = folder(tmp_path)
    handle, (first, _) = index_of(output, [["a", "b", "c"], ["b"]])
    path = Path(first.path)
    if damage == "changed":
        path.write_bytes(path.read_bytes().replace(b"2.0", b"3.0"))
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    found = find_vectors(["a", "b", "c"], opened(handle), DIMENSIONS)
    assert found.mask.tolist() == [False, True, False]
    assert found.vectors[1].tolist() == vector_of("b")
    assert "gives no vectors" in caplog.text


def test_a_process_keeps_the_indexes_of_its_last_runs_alone(tmp_path: Path) -> None:
    output = folder(tmp_path)
    _, files = index_of(output, [["a"]])
    former = make_index([(files[0], encode_keys("a"))])
    assert former is not None
    handles = [write_index(output, former, f"run {number}") for number in range(3)]
    first = weakref.ref(opened(handles[0]))
    assert opened(handles[0]) is first()
    for handle in handles[1:]:
        opened(handle)
    gc.collect()
    assert first() is None


def test_vectors_of_another_size_or_that_are_none_are_not_used(tmp_path: Path) -> None:
    output = folder(tmp_path)
    lines = [
        b'{"content":"a","embedding":[1,2]}\n',
        b'{"content":"b","embedding":[0,0,0]}\n',
        b'{"content":"c","embedding":[1,2,1e39]}\n',
        b'{"content":"d","embedding":"x"}\n',
        b'{"content":"e"}\n',
        b'["f"]\n',
        b'{"content":"g","embedding":[1,2,3]}\n',
    ]
    written = output.write("data/f-00000.ndjson", lines)
    file = FormerFile(output.path(written.path), written.bytes, written.crc32c, "content", "embedding")
    index = make_index([(file, encode_keys("abcdefg"))])
    assert index is not None
    with np.errstate(over="ignore"):
        assert find_vectors(list("abcdefg"), index, DIMENSIONS).mask.tolist() == [False] * 6 + [True]


def test_files_that_would_give_less_than_one_percent_in_all_are_not_opened(tmp_path: Path) -> None:
    output = folder(tmp_path)
    rare = [[f"rare {number}"] for number in range(FILES_ALWAYS_OPENED + 20)]
    many = [f"text {number}" for number in range(1000)]
    handle, _ = index_of(output, [many, *rare])
    texts = [*many, *(text for file in rare for text in file)]
    found = find_vectors(texts, opened(handle), DIMENSIONS)
    missing = len(texts) - int(found.mask.sum())
    assert 0 < missing <= 0.01 * len(texts)
    assert found.mask[:1000].all()


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_damaged_index_is_none(tmp_path: Path, cut: int) -> None:
    output = folder(tmp_path)
    handle, _ = index_of(output, [["a", "b"]])
    assert handle is not None
    path = Path(output.path(handle.name))
    path.write_bytes(path.read_bytes()[:cut])
    assert handle.open() is None


def test_a_text_that_no_utf8_can_hold_has_the_key_of_what_is_sent() -> None:
    assert key_of("a\ud800") == key_of("a?")
    assert len(encode_keys(["a", "b"])) == 2 * KEY_BYTES


@given(
    st.lists(st.sampled_from("abcdef"), max_size=12),
    st.sets(st.sampled_from("abcdef")),
    st.sets(st.sampled_from("abcdef")),
)
def test_whatever_is_found_sent_or_rejected_every_document_gets_its_own(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], known: set[str], refused: set[str]
) -> None:
    handle, _ = index_of(folder(tmp_path_factory.mktemp("x")), [sorted(known)])
    each = distinct(texts)
    found = find_vectors(each.texts, opened(handle), DIMENSIONS) if handle is not None and texts else None
    new = [text for n, text in enumerate(each.texts) if found is None or not found.mask[n]]
    vectors = np.array([vector_of(text) for text in new], dtype=np.float32).reshape(len(new), DIMENSIONS)
    rejections = {
        n: Rejection(Reason.REJECTED_BY_ENDPOINT, text, 422, 1) for n, text in enumerate(new) if text in refused
    }
    vectors[list(rejections)] = 0
    long = [n for n, text in enumerate(new) if text in "ace" and n not in rejections]
    sent = Embeddings(vectors, rejections, RequestStatistics(), long)
    embeddings, reused, duplicates = assemble(each, found, sent)
    assert list(embeddings.truncated) == [n for n, text in enumerate(texts) if text in {new[place] for place in long}]
    assert len(embeddings.vectors) == len(texts)
    bad = refused - known
    for n, text in enumerate(texts):
        assert (n in embeddings.rejections) is (text in bad)
        if text in bad:
            assert embeddings.rejections[n].detail == text
        else:
            assert embeddings.vectors[n].tolist() == vector_of(text)
    good = [text for text in texts if text not in bad]
    assert reused == len(set(good) & known)
    assert duplicates == len(good) - len(set(good))
