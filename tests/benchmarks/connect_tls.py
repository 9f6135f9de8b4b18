"""Connecting over TLS and signing in with a token of 2 KB, after the first connection.

A client's first connection loads the CA store, which everybody pays once. From the second one on
redis-py loads it again, aioentra_redis does not. The floor is asyncio's own connection with one
SSLContext and one AUTH. All take turns, connection by connection, against the same TLS front.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable

import redis.asyncio
from _harness import (
    CLIENT_CORE,
    OID,
    Control,
    Endpoint,
    LocalCredential,
    Series,
    headline,
    pin,
    progress,
    run,
    server,
    table,
    tls_front,
)

Connect = Callable[[], Awaitable[float]]

FLOOR = "floor: asyncio streams, one SSLContext, AUTH"
REDIS_PY = "redis.asyncio"
OURS = "aioentra_redis"


def floor(endpoint: Endpoint, token: str) -> Connect:
    context = endpoint.ssl_context()
    request = b"*3\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
    auth = request % (len(OID), OID.encode(), len(token), token.encode())

    async def connect() -> float:
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host
        )
        writer.write(auth)
        reply = await reader.readline()
        elapsed = time.perf_counter() - begin
        if reply != b"+OK\r\n":
            raise RuntimeError(f"AUTH was answered with {reply!r}")
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
        return elapsed

    return connect


def of_pool(pool: redis.asyncio.ConnectionPool) -> Connect:
    """Connections as the pool makes them: TLS, HELLO with AUTH, names."""

    async def connect() -> float:
        connection = pool.make_connection()
        begin = time.perf_counter()
        await connection.connect()
        elapsed = time.perf_counter() - begin
        await connection.disconnect()
        return elapsed

    return connect


async def measure(
    endpoint: Endpoint, credential: LocalCredential, rounds: int, connects: int
) -> dict[str, Series]:
    async with contextlib.AsyncExitStack() as stack:
        token, _ = credential.issue()
        ways: dict[str, Connect] = {FLOOR: floor(endpoint, token)}
        client = redis.asyncio.Redis(
            host=endpoint.host,
            port=endpoint.port,
            ssl=True,
            ssl_ca_certs=str(endpoint.ca),
            ssl_check_hostname=True,
            username=OID,
            password=token,
        )
        stack.push_async_callback(client.aclose)
        ways[REDIS_PY] = of_pool(client.connection_pool)
        try:
            from aioentra_redis import EntraRedis, TokenSource
        except ImportError as error:
            progress(f"without {OURS}: {error}")
        else:
            source = await stack.enter_async_context(TokenSource(credential))
            ours = EntraRedis(
                host=endpoint.host,
                port=endpoint.port,
                ssl=True,
                ssl_ca_certs=str(endpoint.ca),
                token_source=source,
            )
            stack.push_async_callback(ours.aclose)
            await ours.ping()
            ways[OURS] = of_pool(ours.connection_pool)

        for connect in ways.values():
            await connect()  # the first one is not counted
        results = {name: Series() for name in ways}
        for number in range(rounds):
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(connects):
                for name, connect in ways.items():
                    taken[name].append(await connect())
            for name, each in taken.items():
                results[name].values.append(sorted(each)[len(each) // 2])
                progress(f"round {number + 1} {name}: {results[name].values[-1] * 1000:.2f} ms")
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connects", type=int, default=20, help="connections a round and way")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    pin(CLIENT_CORE)
    with server() as port, tls_front(port) as endpoint:
        control = Control(port)
        control.accept_tokens()
        credential = LocalCredential(lifetime=3600)
        results = run(
            lambda: measure(endpoint, credential, options.rounds, options.connects), options.loop
        )
        control.close()
        names = ["aioentra-redis", "redis"]
        print(headline(loop=options.loop, port=port, distributions=names))
    print(
        f"\nMilliseconds to connect over TLS and sign in with a token of 2 KB: median (range) of"
        f" {options.rounds} rounds of {options.connects} connections, taking turns\n"
    )
    base = results[FLOOR]
    rows = [[name, series.cell(1000, 2, base)] for name, series in results.items()]
    print(table(["", "ms, **ratio** to the floor"], rows))


if __name__ == "__main__":
    main()
