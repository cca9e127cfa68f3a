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


def read_provision_info(endpoint: str, worker: str) -> dict[str, str]:
    """Return the environment that the SDK worker's main program expects.

    Args:
        endpoint: host and port of the runner's provision service.
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


def hides_options(record: logging.LogRecord) -> bool:
    """Return False for the record in which Beam logs every pipeline option, secret keys included."""
    return not str(record.msg).startswith("Pipeline_options:")


def main() -> None:
    """Work until the runner ends this."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    known, _ = parser.parse_known_args()  # the runner passes other endpoints, too; the provision service has them all
    os.environ.update(read_provision_info(known.provision_endpoint, known.id))
    logging.getLogger(sdk_worker_main.__name__).addFilter(hides_options)
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
