from __future__ import annotations

import pytest

from pipeline.errors import NotProven, PipelineFailed
from pipeline.runners.smoke_test import _DOCUMENTS, _remedy
from transforms.storage.base import StorageError
from transforms.tei.errors import EndpointRefused, EndpointUnreachable
from transforms.tei.settings import EndpointSettings


def test_ten_documents_are_ten_shards() -> None:
    assert len(_DOCUMENTS) == len(set(_DOCUMENTS)) == 10
    assert len({len(document) for document in _DOCUMENTS}) == 1


@pytest.mark.parametrize(
    ("error", "url", "root", "remedy"),
    [
        (PipelineFailed("ModuleNotFoundError: No module named 'transforms'"), "http://tei", "gs://b/o", "--setup_file"),
        (PipelineFailed("No module named 'pipeline'"), "http://tei", "gs://b/o", "--setup_file"),
        (PipelineFailed("No module named 'orjson'"), "http://tei", "gs://b/o", "lack a package that Tayyar needs"),
        (
            PipelineFailed('java.io.IOException: Cannot run program "docker": error=2, No such file or directory'),
            "http://tei",
            "gs://b/o",
            "--environment_type EXTERNAL",
        ),
        (EndpointRefused("the secret env:T is empty or not set on this machine"), "http://tei", "/o", "on each worker"),
        (EndpointUnreachable("nobody answers"), "http://127.0.0.1:8080", "/o", "the worker's own machine"),
        (EndpointUnreachable("nobody answers"), "http://localhost:8080", "/o", "the worker's own machine"),
        (EndpointUnreachable("nobody answers"), "http://10.0.0.1:8080", "/o", "firewall"),
        (EndpointRefused("not this"), "http://10.0.0.1:8080", "/o", "different for a worker"),
        (NotProven("10 findings"), "http://tei", "/o", "a bucket or a shared folder"),
        (StorageError("no permission"), "http://tei", "gs://b/o", "the workers' account"),
    ],
)
def test_what_a_worker_cannot_has_a_remedy(error: Exception, url: str, root: str, remedy: str) -> None:
    assert remedy in _remedy(error, EndpointSettings((url,)), root)
