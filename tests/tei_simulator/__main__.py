"""The simulator as a server process."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import json
import sys
from typing import Any, cast

from pipeline.embedded_tei import server
from pipeline.embedded_tei.limits import ServerLimits
from tests.tei_simulator.app import SimulatedTei
from tests.tei_simulator.connection import BreakableProtocol
from tests.tei_simulator.faults import Faults

_DEFAULTS = ServerLimits()


class CrashingServer(server.Server):
    """A server that can pretend to crash."""

    _task: asyncio.Task[None] | None = None

    def crash(self, seconds: float) -> None:
        """Reset all connections, refuse new ones for a time, then listen on the same port again."""
        if not self.servers:  # it is down already
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        for listener in self.servers:
            listener.close()
        self.servers = []
        for protocol in list(self.server_state.connections):
            cast("BreakableProtocol", protocol).connection.reset()
        self._task = asyncio.get_running_loop().create_task(self._listen_again(host, port, seconds))

    async def _listen_again(self, host: str, port: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.should_exit:
            return
        make = functools.partial(BreakableProtocol, config=self.config, server_state=self.server_state, app_state={})
        listener = server.bind(host, port)
        loop = asyncio.get_running_loop()
        self.servers = [await loop.create_server(make, sock=listener, backlog=self.config.backlog)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.tei_simulator", usage="%(prog)s [OPTIONS]", description=__doc__, allow_abbrev=False
    )
    server.add_server_arguments(parser, _DEFAULTS)
    parser.add_argument("--generation", choices=["1.8", "1.9"], default="1.9", help="the version to reply like")
    parser.add_argument("--faults", metavar="JSON", default="{}", help="several faults at once")
    group = parser.add_argument_group("faults", "each takes JSON, or a plain string; `faults.Faults` describes them")
    for field in dataclasses.fields(Faults):
        group.add_argument(f"--{field.name}", metavar="JSON", type=_json_or_text)
    return parser.parse_args()


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> int:
    options = _options()
    try:
        limits = server.limits_of(options, _DEFAULTS)
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Faults)}
        changes = {name: value for name, value in given.items() if value is not None}
        faults = Faults.from_json(options.faults).changed(changes)
        app = SimulatedTei(limits, faults, is_old=options.generation == "1.8")
        listener = server.bind(options.host, options.port)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tei_simulator: {error}\n")
        return 2
    process = CrashingServer(server.config_of(app, BreakableProtocol))
    app.crash = process.crash
    server.run(process, listener, exit_with_parent=options.exit_with_parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
