"""One of Beam's Python workers, as a runner starts it with environment type PROCESS: it asks the runner for the rest.

What Beam's containers have a program of their own for, which fetches staged packages too. Here, all is installed.
"""

from __future__ import annotations

import argparse
import logging
import os

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format


def told_by(endpoint: str, worker: str) -> dict[str, str]:
    """Return what the worker's main program looks for in its environment.

    Args:
        endpoint: host and port at which the runner tells it.
        worker: the id that the runner gave this worker.
    """
    with grpc.insecure_channel(endpoint) as channel:
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = service.GetProvisionInfo(request, metadata=[("worker_id", worker)], wait_for_ready=True, timeout=60).info
    return {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }


def tells_no_options(record: logging.LogRecord) -> bool:
    """Whether a record is another than the one in which Beam tells the runner's log every option, also secret keys."""
    return not str(record.msg).startswith("Pipeline_options:")


def main() -> None:
    """Work until the runner ends this."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    told, _ = parser.parse_known_args()  # other endpoints stand in what is told too
    os.environ.update(told_by(told.provision_endpoint, told.id))
    logging.getLogger(sdk_worker_main.__name__).addFilter(tells_no_options)
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
