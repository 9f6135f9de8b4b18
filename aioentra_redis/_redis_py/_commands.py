"""What redis-py does with a command besides sending it: packing, options, retries."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hiredis
from redis import exceptions as redis_exceptions
from redis.client import EMPTY_RESPONSE, NEVER_DECODE

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from .._multiplex._engine import Packed

__all__ = [
    "EMPTY_RESPONSE",
    "NEVER_DECODE",
    "command_options",
    "packer",
    "retry_delays",
    "run_last_command",
    "server_mode",
    "write_packed",
]

CHUNK = 6000
"""Arguments longer than this, in bytes, are written uncopied as chunks of their own; it is
redis-py's own limit."""


def command_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that go on to a response callback: redis-py's own markers are taken out."""
    options.pop("keys", None)
    options.pop(NEVER_DECODE, None)
    options.pop(EMPTY_RESPONSE, None)
    return options


async def run_last_command(client: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run a command that ends or resets its connection on one of the pool's, then close that."""
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        return await client._send_command_parse_response(connection, args[0], *args, **options)
    finally:
        try:
            await connection.disconnect(nowait=True)
        finally:
            await pool.release(connection)


async def write_packed(connection: Any, command: Any, _: bool = False) -> None:
    """Write packed commands to a connection that stands; redis-py's errors.

    What its ``send_packed_command`` does, without ``asyncio.wait_for``: that of Python 3.11 forgets
    a cancellation that comes while the write ends, and the cancelled caller would go on to wait.
    """
    try:
        async with asyncio.timeout(connection.socket_timeout):
            if isinstance(command, str):
                command = command.encode()
            connection._writer.writelines([command] if isinstance(command, bytes) else command)
            await connection._writer.drain()
    except TimeoutError:
        await connection.disconnect(nowait=True)
        raise redis_exceptions.TimeoutError("Timeout writing to socket") from None
    except OSError as exc:
        await connection.disconnect(nowait=True)
        number, text = exc.args if len(exc.args) == 2 else ("UNKNOWN", exc)
        raise redis_exceptions.ConnectionError(
            f"Error {number} while writing to socket. {text}."
        ) from exc
    except BaseException:
        # Some of it may have been written.
        await connection.disconnect(nowait=True)
        raise


def server_mode(hello: Any) -> str | None:
    """The ``mode`` in HELLO's reply, a map with RESP3 and a flat list with RESP2."""
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=False))
    if not isinstance(hello, dict):
        return None
    mode = hello.get("mode", hello.get(b"mode"))
    return mode.decode() if isinstance(mode, bytes) else mode


def retry_delays(retry: Any) -> Iterator[float]:
    """The waits, in seconds, between the attempts that a user's redis-py ``Retry`` allows.

    None allows no attempt but the first, a negative number of retries any.
    """
    if retry is None:
        return
    backoff = copy.deepcopy(retry._backoff)  # it has a state: each command counts for itself
    backoff.reset()
    for number in range(1, retry._retries + 1) if retry._retries >= 0 else itertools.count(1):
        yield max(0.0, backoff.compute(number))


def packer(connection: AbstractConnection) -> Callable[[tuple[Any, ...]], Packed]:
    """How commands become bytes on this connection; raises redis-py's DataError.

    hiredis' packer is about five times as fast as redis-py's, and the latter takes everything:
    other encodings, memoryviews, the refusal of None and bool.
    """

    def general(*args: Any) -> list[bytes]:
        packed: list[bytes] = connection.pack_command(*map(_plain_bytes, args))
        return packed

    encoder = connection.encoder
    utf8 = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    if not utf8 or encoder.encoding_errors != "strict":
        return lambda args: general(*args)

    def pack(
        args: tuple[Any, ...],
        hiredis_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command,
    ) -> Packed:
        for arg in args:
            kind = arg.__class__
            if kind is str or kind is bytes:
                if len(arg) > CHUNK:
                    return general(*args)
            elif kind is not int and kind is not float:
                return general(*args)
        return hiredis_pack(args)

    return pack


def _plain_bytes(arg: Any) -> Any:
    """``arg``, or its bytes if it is a memoryview that is not just a row of bytes.

    redis-py would announce it by its number of elements, and joining it would fail half-way: on a
    shared connection either is everybody's problem.
    """
    if arg.__class__ is memoryview and (arg.ndim != 1 or arg.itemsize != 1 or not arg.c_contiguous):
        return bytes(arg)
    return arg
