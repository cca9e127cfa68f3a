from __future__ import annotations

import dataclasses

import psutil
import pytest

from pipeline.errors import UsageError
from pipeline.job.spec import ServedModel
from pipeline.runners.endpoint import open_endpoint, require_endpoint
from tests.servers import wait_until
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.settings import EndpointSettings


def embed_while_the_server_is_killed() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with open_endpoint(EndpointSettings(urls=()), None) as (usable, _):
        (server,) = (child for child in psutil.Process().children() if child.pid not in before)
        server.kill()
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE, "the server's end")
        client = TeiClient(dataclasses.replace(usable, give_up_after=0.5))
        try:
            client.submit(["a text"]).result()
        finally:
            client.close()


def test_an_embedded_server_that_is_gone_is_told_from_an_endpoint_that_is_slow() -> None:
    with pytest.raises(EndpointUnreachable, match="Tayyar's own server is gone: it ended with -9"):
        embed_while_the_server_is_killed()


def served(model_id: str, revision: str | None) -> ServedModel:
    return ServedModel(model_id, revision, "float32", "mean", "1.9.3", None, "2026-01-02T03:04:05+00:00")


def test_a_job_of_another_model_asks_for_its_endpoint_instead_of_starting_one() -> None:
    nowhere, other = EndpointSettings(urls=()), served("BAAI/bge-m3", "abc")
    with pytest.raises(UsageError, match="--endpoint is missing: this job's vectors are those of BAAI/bge-m3"):
        require_endpoint(nowhere, None, other)
    require_endpoint(EndpointSettings(urls=("http://tei",)), None, other)
    require_endpoint(nowhere, "/a/folder", other)


def test_a_job_of_the_built_in_model_needs_no_endpoint_and_the_start_is_reported() -> None:
    lines: list[str] = []
    with open_endpoint(EndpointSettings(urls=()), None, say=lines.append) as (_, profile):
        identity = profile.identity
    require_endpoint(EndpointSettings(urls=()), None, served(identity.model_id, identity.sha))
    assert lines == ["without --endpoint: starting Tayyar's own small model on this machine"]
