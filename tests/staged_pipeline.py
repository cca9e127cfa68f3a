"""Carries out a pipeline that was staged, where nothing but what was staged with it is installed.

A program of its own: a test calls it with the Python of a clean environment. Tells the DoFns that it unpickled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner


def do_fns(pipeline: beam_runner_api_pb2.Pipeline) -> list[Any]:
    """Unpickle every DoFn, as a worker does before it sets it up."""
    found = []
    for transform in pipeline.components.transforms.values():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            if payload.do_fn.urn == python_urns.PICKLED_DOFN_INFO:  # some of Beam's own are known by their URN alone
                found.append(pickler.loads(payload.do_fn.payload)[0])
    return found


def main() -> None:
    """Take the path of the pipeline."""
    import pipeline
    import transforms

    for package in (pipeline, transforms):
        assert "site-packages" in str(package.__file__), package
    staged = beam_runner_api_pb2.Pipeline.FromString(Path(sys.argv[1]).read_bytes())
    for do_fn in do_fns(staged):
        do_fn.setup()
        do_fn.teardown()
        sys.stdout.write(f"{type(do_fn).__module__}.{type(do_fn).__name__}\n")
    here = beam_runner_api_pb2.Environment(urn=python_urns.EMBEDDED_PYTHON)
    for environment in staged.components.environments.values():
        environment.CopyFrom(here)
    FnApiRunner().run_via_runner_api(staged, PipelineOptions([]))


if __name__ == "__main__":
    main()
