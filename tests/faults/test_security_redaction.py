"""Each way to sign in, failing at each step of it: no token shows, whoever looks, however deep.

The tokens are really issued, by the emulator; the server is scripted, so that it can fail anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio
from azure.core.credentials import AccessTokenInfo
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.canary import Canary
from support.scripted_peer import CUT, HANG, HELLO, OK, Peer
from support.signing_in import BRISK, Witness

from aioentra_redis import (
    EntraCredentialProvider,
    EntraRedis,
    TokenSource,
    connect,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"


class Issuing:
    """A credential whose tokens the canary knows."""

    def __init__(self, emulator: Emulator, canary: Canary) -> None:
        self.emulator = emulator
        self.canary = canary
        self.believed = 60.0
        self.fails = False

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        if self.fails:
            held = await self._issued()
            raise RuntimeError(f"the provider said access_token={held}, client_secret='s3cret'")
        return AccessTokenInfo(await self._issued(), time.time() + self.believed)  # type: ignore[arg-type]

    async def _issued(self) -> str:
        token = await self.emulator.issue_token(lifetime=120)
        self.canary.add(token)
        return token

    async def close(self) -> None:
        pass


class Place:
    def __init__(self, emulator: Emulator, canary: Canary) -> None:
        self.canary = canary
        self.peer = Peer()
        self.port = 0
        self.witness = Witness()
        self.credential = Issuing(emulator, canary)
        self.source = self.make_source()

    def make_source(self) -> TokenSource:
        async def factory() -> Issuing:
            return self.credential

        return TokenSource.from_credential_factory(factory, refresh=BRISK, on_event=self.witness)

    def script(self, step: Any) -> None:
        """What HELLO and AUTH get from now on."""
        for name in ("HELLO", "AUTH"):
            usual = HELLO if name == "HELLO" else OK
            self.peer.script[name] = lambda *_, usual=usual: usual if step is None else step


@pytest.fixture
async def place(entra_emulator: Emulator) -> AsyncIterator[Place]:
    canary = Canary("s3cret")
    root = logging.getLogger()
    level = root.level
    root.addHandler(canary)
    root.setLevel(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # asyncio logs and keeps more then
    made = Place(entra_emulator, canary)
    try:
        async with made.peer.serve() as port:
            made.port = port
            yield made
            await made.source.aclose()
    finally:
        loop.set_debug(False)
        root.setLevel(level)
        root.removeHandler(canary)


# ------------------------------------------------------------------------------- the ways


def once() -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0), "socket_timeout": 1.0, "protocol": 3}


def ours(place: Place) -> EntraRedis:
    options = {"recovery_timeout": 1.5, "on_event": place.witness, **once()}
    return EntraRedis(host="127.0.0.1", port=place.port, token_source=place.source, **options)


async def by_connect(place: Place, made: list[Any]) -> None:
    url = f"redis://127.0.0.1:{place.port}"
    times = {"open_timeout": 2, "recovery_timeout": 1.5}
    client = await connect(url, token_source=place.source, cluster=False, **times, **once())
    made.append(client)
    await client.ping()


async def dedicated(place: Place, made: list[Any]) -> None:
    made.append(client := ours(place))
    async with client.client() as one:
        await one.ping()


async def leased(place: Place, made: list[Any]) -> None:
    made.append(client := ours(place))
    connection = await client.connection_pool.get_connection()
    await client.connection_pool.release(connection)


async def subscriber(place: Place, made: list[Any]) -> None:
    made.append(client := ours(place))
    pubsub = client.pubsub()
    try:
        await pubsub.subscribe("channel")
    finally:
        await pubsub.aclose()


async def plain(place: Place, made: list[Any]) -> None:
    options = {**once(), **entra_kwargs(place.source)}
    made.append(client := redis.asyncio.Redis(host="127.0.0.1", port=place.port, **options))
    await client.ping()


async def plain_subscriber(place: Place, made: list[Any]) -> None:
    options = {**once(), **entra_kwargs(place.source)}
    made.append(client := redis.asyncio.Redis(host="127.0.0.1", port=place.port, **options))
    pubsub = client.pubsub()
    try:
        await pubsub.subscribe("channel")
    finally:
        await pubsub.aclose()


async def provider(place: Place, made: list[Any]) -> None:
    options = {**once(), "credential_provider": EntraCredentialProvider(place.source)}
    made.append(client := redis.asyncio.Redis(host="127.0.0.1", port=place.port, **options))
    await client.ping()


WAYS = (by_connect, dedicated, leased, subscriber, plain, plain_subscriber, provider)

STEPS: dict[str, Any] = {
    "refused": WRONGPASS,
    "denied": b"-NOPERM no permissions to run 'hello'\r\n",
    "cut": CUT,
    "hung": HANG,
    "hung, in a timeout": HANG,
    "hung, cancelled": HANG,
    "nonsense": b"~nonsense\r\n",
    "half": [b"%7\r\n+pro", 0.05, CUT],
    "no listener": None,
    "no token": None,
}


async def failing(way: Callable[..., Any], place: Place, how: str, made: list[Any]) -> Any:
    """What the way ends with, as its caller gets it."""
    place.script(STEPS[how])
    if how == "no listener":
        place.port = 1
    place.credential.fails = how == "no token"
    task = asyncio.create_task(way(place, made))
    await asyncio.sleep(0.3)
    place.canary.show_tasks(f"{way.__name__}, {how}, meanwhile")
    if how == "hung, cancelled":
        task.cancel()
    try:
        if how == "hung, in a timeout":
            async with asyncio.timeout(0.1):
                await task
        else:
            async with asyncio.timeout(20):
                await task
    except (Exception, asyncio.CancelledError) as error:
        return error
    raise AssertionError(f"{way.__name__} did not fail when {how}")


@pytest.mark.parametrize("how", STEPS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_sign_in_that_fails_shows_no_token(
    place: Place, way: Callable[..., Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way is not by_connect and how == "hung":
        # The handshake has 15 s, whatever the user's socket_timeout is.
        for module in ("_plain", "_handover"):
            name = f"aioentra_redis._redis_py.{module}.HANDSHAKE_TIMEOUT"
            monkeypatch.setattr(name, 1.0)
    made: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = await failing(way, place, how, made)
        where = f"{way.__name__}, {how}"
        place.canary.show(error, where)
        for each in made:
            place.canary.show(each, where)
            place.canary.show(each.connection_pool, f"{where}, its pool")
            with contextlib.suppress(redis.exceptions.RedisError):
                await each.aclose()
            with contextlib.suppress(redis.exceptions.RedisError):
                await each.connection_pool.disconnect()
        for event in place.witness.events:
            place.canary.show(event, f"{where}, an event")
        place.canary.show(place.source.status, where)
        made.clear()
        del error
        gc.collect()
        for warning in caught:
            place.canary.look(f"{where}, a warning", str(warning.message))
    assert place.canary.leaks == []
    assert place.canary.looks > 50
    if how == "refused" and way is not provider:
        assert "aioentra_redis" in place.canary.loggers


@pytest.mark.parametrize("how", ["refused", "cut", "hung"])
async def test_a_renewal_that_fails_shows_no_token(place: Place, how: str) -> None:
    """In band, on the shared connection, on dedicated ones, and on plain clients."""
    place.credential.believed = 1.2
    place.script(None)
    client = ours(place)
    options = {**once(), **entra_kwargs(place.source)}
    other = redis.asyncio.Redis(host="127.0.0.1", port=place.port, **options)
    errors: list[BaseException] = []
    working = True

    async def busy(one: Any) -> None:
        while working:
            try:
                await one.ping()
            except redis.exceptions.RedisError as error:
                errors.append(error)
            await asyncio.sleep(0.03)

    await client.ping()
    async with client.client() as held:
        await held.ping()
        place.peer.script["AUTH"] = lambda *_: STEPS[how]
        tasks = [asyncio.create_task(busy(one)) for one in (client, held, other)]
        async with asyncio.timeout(30):
            while len(place.peer.seen("AUTH")) < 3:
                await asyncio.sleep(0.05)
                place.canary.show_tasks(how)
        working = False
        place.script(None)
        place.peer.go_on()
        place.peer.cut()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
    for each in errors:
        place.canary.show(each, how)
    for event in place.witness.events:
        place.canary.show(event, how)
    for one in (client, other):
        with contextlib.suppress(redis.exceptions.RedisError):
            await one.aclose()
    assert place.canary.leaks == []


async def test_spans_show_no_token(place: Place) -> None:
    place.script(None)
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = RedisInstrumentor()
    instrumentor.instrument(tracer_provider=tracers)
    try:
        for way in (by_connect, dedicated, plain, provider):
            made: list[Any] = []
            await way(place, made)
            for each in made:
                await each.aclose()
    finally:
        instrumentor.uninstrument()
    spans = exporter.get_finished_spans()
    assert len(spans) >= 3
    for span in spans:
        place.canary.look("a span", span.to_json())
    assert place.canary.leaks == []


async def test_the_canary_sings(place: Place) -> None:
    """Or none of the above could fail."""
    token = await place.source.get()
    logging.getLogger("other").debug("AUTH %s", token.secret)
    signature = str(token.secret).rpartition(".")[2]

    async def waits(words: bytes) -> None:
        await asyncio.sleep(60)

    def raising(word: str) -> None:
        raise ValueError

    waiting = asyncio.create_task(waits(str(token.secret).encode()))
    await asyncio.sleep(0)
    place.canary.show_tasks("tasks")
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    try:
        try:
            raising(signature)
        except ValueError:
            raise KeyError from None
    except KeyError as error:
        place.canary.show(error, "an error")
    place.canary.show({"a": [signature]}, "a dictionary")
    found = "\n".join(place.canary.leaks)
    for where in (
        *("log of other", "tasks, ", "an error, frames of ValueError"),
        *("a dictionary, pickled", "a dictionary, as JSON"),
    ):
        assert where in found, where
    assert signature not in found
