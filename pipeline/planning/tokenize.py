"""How many tokens texts have, by the endpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from transforms.elements import text_as_sent
from transforms.tei.handshake import ServerInfo
from transforms.tei.tasks import cut
from transforms.tei.transport import NoReply, Transport

_BODY_LIMIT = 1 << 20  # characters; a reply has some fifty bytes for each of them


class CannotTokenize(Exception):
    """The endpoint did not count; the message holds its answer."""


def count_tokens(
    transport: Transport, url: str, info: ServerInfo, texts: Sequence[str], prompt_name: str | None
) -> list[int | None]:
    """Return each text's number of tokens before any cut, special tokens and prompt included.

    A text of so many characters that the server would not read them has None.

    Args:
        transport: carries the requests.
        url: of the endpoint.
        info: of the endpoint.
        texts: any number of them.
        prompt_name: one of the model's prompts; None for the server's default.

    Raises:
        CannotTokenize: the endpoint does not count.
    """
    counts: list[int | None] = [None] * len(texts)
    short = [index for index, text in enumerate(texts) if len(text) <= info.max_characters]
    for indices in cut(texts, info.batch_limit, _BODY_LIMIT, short):
        rows = _ask(transport, url, [texts[index] for index in indices], prompt_name)
        for index, tokens in zip(indices, rows, strict=True):
            counts[index] = len(tokens)
    return counts


def _ask(transport: Transport, url: str, texts: Sequence[str], prompt_name: str | None) -> list[list[object]]:
    asked: dict[str, object] = {"inputs": [text_as_sent(text).decode() for text in texts]}
    if prompt_name is not None:
        asked["prompt_name"] = prompt_name
    try:
        reply = transport.post(f"{url}/tokenize", orjson.dumps(asked))
        if reply.status != 200:
            raise CannotTokenize(f"{url}/tokenize answers with status {reply.status}")
        rows = orjson.loads(reply.body)
    except (NoReply, orjson.JSONDecodeError) as error:
        raise CannotTokenize(f"{url}/tokenize gives no answer that can be read: {error}") from error
    if not isinstance(rows, list) or len(rows) != len(texts) or not all(isinstance(row, list) for row in rows):
        raise CannotTokenize(f"{url}/tokenize answers with something else than the texts' tokens")
    return rows
