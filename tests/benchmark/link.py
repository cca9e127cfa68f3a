"""A link to a server that takes its time: a program that passes bytes on, and counts HTTP requests."""

from __future__ import annotations

import asyncio
import sys

_REQUEST = b" HTTP/1.1\r\n"  # in one piece with its headers, as clients send small requests


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    """Pass on what one side says, after some seconds; with any, it is the asking side, whose requests are counted."""
    while data := await reader.read(1 << 16):
        if latency:
            sys.stdout.write("." * data.count(_REQUEST))
            sys.stdout.flush()
            await asyncio.sleep(latency)
        writer.write(data)
    writer.close()


async def _serve(port: int, server: int, latency: float) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server)
        await asyncio.gather(_pass_on(reader, back, latency), _pass_on(there, writer, 0), return_exceptions=True)

    async with await asyncio.start_server(connect, "127.0.0.1", port) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
