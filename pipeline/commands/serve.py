"""The command `serve`: a small multilingual model, or one of the user's own, by TEI's protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.commands.options.declare import filled
from pipeline.errors import UsageError


def serve(arguments: Sequence[str]) -> int:
    """Serve the embedded TEI until it is interrupted, and return the exit code.

    Raises:
        UsageError: if the packages of the extra [local] are missing.
    """
    try:
        from pipeline.embedded_tei import server
    except ImportError as error:
        raise UsageError(
            f"tayyar serve needs a package that is missing ({error}): {sys.executable} -m pip install 'tayyar[local]'"
        ) from error
    parser = argparse.ArgumentParser(
        prog="tayyar serve",
        description=filled(
            "Serve a model by TEI's protocol on this machine's cores: a small multilingual one that comes with Tayyar, "
            "or your own from the folder of an ONNX export."
        ),
        epilog="examples:\n  tayyar serve --port 8080\n  tayyar serve --port 8080 --model exported --optimize",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    server.add_arguments(parser)
    return server.main(parser.parse_args(arguments))
