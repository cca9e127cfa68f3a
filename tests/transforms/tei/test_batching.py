from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transforms.tei.tasks import Batch, cut

TEXTS = st.lists(st.text(max_size=30), max_size=60)


def batches_of(
    texts: list[str], most: int, characters: int = 10**9, every: int = 0, kept: list[int] | None = None
) -> list[Batch]:
    asked = iter(range(1, 10**6))
    return list(cut(texts, most, characters, lambda: bool(every) and next(asked) % every == 0, kept))


@given(TEXTS, st.integers(1, 9), st.integers(1, 60), st.integers(0, 3))
def test_every_text_is_in_one_batch_within_the_limits(texts: list[str], most: int, characters: int, every: int) -> None:
    batches = batches_of(texts, most, characters, every)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(texts)))
    for batch in batches:
        assert 1 <= len(batch.indices) + batch.canary <= most
        total = sum(len(texts[index]) for index in batch.indices)
        assert total <= characters or len(batch.indices) == 1


@given(TEXTS, st.integers(1, 9))
def test_the_longest_texts_go_first_and_together(texts: list[str], most: int) -> None:
    lengths = [len(texts[index]) for batch in batches_of(texts, most) for index in batch.indices]
    assert lengths == sorted(lengths, reverse=True)


@given(TEXTS, st.integers(1, 9), st.data())
def test_only_what_is_kept_is_cut(texts: list[str], most: int, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(texts))), unique=True)) if texts else []
    batches = batches_of(texts, most, kept=kept)
    assert sorted(index for batch in batches for index in batch.indices) == sorted(kept)


def test_a_batch_of_a_hundred_makes_room_for_the_known_sentence() -> None:
    batches = batches_of(["text"] * 1000, 8, every=5)
    assert [len(batch.indices) for batch in batches[:10]] == [8, 8, 8, 8, 7, 8, 8, 8, 8, 7]
    assert [batch.canary for batch in batches[:10]] == [False] * 4 + [True] + [False] * 4 + [True]


def test_a_known_sentence_never_takes_a_texts_place() -> None:
    assert not any(batch.canary for batch in batches_of(["text"] * 3, 1, every=1))
