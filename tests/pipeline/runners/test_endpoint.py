from __future__ import annotations

import dataclasses

import psutil
import pytest

from pipeline.runners.endpoint import reached
from tests.servers import wait_until
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.settings import EndpointSettings


def embed_while_the_server_is_killed() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with reached(EndpointSettings(urls=()), None) as (usable, _):
        (server,) = (child for child in psutil.Process().children() if child.pid not in before)
        server.kill()
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE, "the server's end")
        client = TeiClient(dataclasses.replace(usable, give_up_after=0.5))
        try:
            client.submit(["a text"]).result()
        finally:
            client.close()


def test_an_embedded_server_that_is_gone_is_told_from_an_endpoint_that_is_slow() -> None:
    with pytest.raises(EndpointUnreachable, match="the embedded TEI is gone: it ended with -9"):
        embed_while_the_server_is_killed()
