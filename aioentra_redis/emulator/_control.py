"""The control channel between the emulator's process and its user's.

A Unix socket in the private directory; one connection per call, one JSON line each way. Being
bound to no connection and no event loop, the caller's half works from any of both, and without a
loop too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ._errors import EmulatorError

__all__ = ["Method", "call", "call_blocking", "serve_control"]

logger = logging.getLogger("aioentra_redis.emulator.control")

Method = Callable[..., Awaitable[Any]]
TIMEOUT = 120.0
"""Seconds after which a call gives up. The slowest move thousands of slots, or wait for a cluster
on a machine that is busy."""


# ------------------------------------------------------------------------------ the emulator's half


async def serve_control(path: Path, methods: Mapping[str, Method]) -> asyncio.Server:
    """Answer calls of ``methods`` on a Unix socket at ``path``."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            request = await reader.readline()
            if request:
                writer.write(json.dumps(await _answer(methods, request)).encode() + b"\n")
                await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(handle, str(path))


async def _answer(methods: Mapping[str, Method], request: bytes) -> dict[str, Any]:
    try:
        document = json.loads(request)
        result = await methods[document["method"]](**document["params"])
        return {"result": result}
    except (ValueError, TypeError) as error:
        return {"error": str(error), "kind": "value"}
    except Exception as error:
        logger.exception("a control call failed")
        return {"error": f"{type(error).__name__}: {error}", "kind": "emulator"}


# ------------------------------------------------------------------------------- the caller's half


async def call(path: str, method: str, params: Mapping[str, Any]) -> Any:
    """Call a method of the emulator; ValueError for a bad argument, EmulatorError otherwise.

    Cancelling gives up waiting; the emulator finishes the call.
    """
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(_request(method, params))
                reply = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise EmulatorError(f"the emulator does not answer: {error!r}") from error
    return _result(reply)


def call_blocking(path: str, method: str, params: Mapping[str, Any]) -> Any:
    """The same without an event loop; blocks."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(_request(method, params))
            with connection.makefile("rb") as file:
                reply = file.read()
    except OSError as error:
        raise EmulatorError(f"the emulator does not answer: {error!r}") from error
    return _result(reply)


def _request(method: str, params: Mapping[str, Any]) -> bytes:
    return json.dumps({"method": method, "params": dict(params)}).encode() + b"\n"


def _result(reply: bytes) -> Any:
    if not reply:
        raise EmulatorError("the emulator has stopped")
    document = json.loads(reply)
    if "error" in document:
        kind = ValueError if document["kind"] == "value" else EmulatorError
        raise kind(document["error"])
    return document["result"]
