"""A token or client secret in a log, repr, exception, pickle, warning or traceback fails a test."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import re
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import (
    EntraRedis,
    EntraRedisError,
    ReauthenticationFailed,
    RefreshFailed,
    SignInRefusedError,
    TokenSource,
    connect,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{8,}")
"""How each part of a JWT but the signature begins."""


class Collector(logging.Handler):
    """Everything that was shown, as text; what is kept from it are the leaks only."""

    def __init__(self, secret: str) -> None:
        super().__init__(logging.DEBUG)
        self._reveal = lambda: secret
        self.seen = 0
        self.leaks: list[str] = []
        self.loggers: set[str] = set()
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name.partition(".")[0])
        self.look(f"log of {record.name}", self.format(record))
        self.look(f"log arguments of {record.name}", repr(record.args))

    def look(self, where: str, text: str) -> None:
        self.seen += 1
        if TOKEN.search(text) or self._reveal() in text:
            hidden = TOKEN.sub("<token>", text).replace(self._reveal(), "<secret>")
            self.leaks.append(f"{where}: {hidden[:2000]}")

    def show(self, thing: object, where: str) -> None:
        """Every way to make text of an object."""
        for form in (repr, str, "{}".format):
            self.look(f"{where}, {form!r}", form(thing))
        if isinstance(thing, BaseException):
            self.show_error(thing, where)
        try:
            pickled = pickle.dumps(thing)
        except Exception as error:
            self.look(f"{where}, refusing to be pickled", str(error))
        else:
            self.look(f"{where}, pickled", pickled.decode("latin-1"))

    def show_error(self, error: BaseException, where: str) -> None:
        rendered = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.look(f"{where}, traceback with locals", "".join(rendered.format()))
        self.look(f"{where}, attributes", repr(vars(error)))


@pytest.fixture
def collector(entra_emulator: Emulator) -> Iterator[Collector]:
    """Listens to all loggers at DEBUG, ours, azure's and redis-py's among them."""
    collector = Collector(entra_emulator.service_principal.secret or "")
    root = logging.getLogger()
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.DEBUG)
    yield collector
    root.setLevel(level)
    root.removeHandler(collector)


async def error_of(call: Any) -> BaseException:
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


async def test_nothing_shows_a_token(entra_emulator: Emulator, collector: Collector) -> None:
    emulator, errors = entra_emulator, dict[str, BaseException]()

    async def fails_to_connect(name: str, **options: Any) -> None:
        source = secret_source(emulator, **options)
        errors[name] = await error_of(client_of(emulator, source))
        collector.show(source, name)
        collector.show(source.status, name)
        await source.aclose()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await emulator.next_tokens(without=["oid"])
        await fails_to_connect("no oid")
        await emulator.next_tokens(opaque=True)
        await fails_to_connect("opaque")
        await emulator.next_tokens(audience="https://elsewhere.example")
        await fails_to_connect("audience")
        await emulator.next_tokens(extra={"exp": 1})
        await fails_to_connect("expired")
        await emulator.next_tokens(forged=True)
        await fails_to_connect("forged")
        await emulator.next_tokens()
        await fails_to_connect("scope", scopes="https://redis.azure.com/no_default")
        await emulator.fail_identity(times=4, status=400, error="invalid_client", code=7000215)
        await fails_to_connect("invalid client")
        await emulator.heal()
        token = await _Sealed.issued_by(emulator)
        await emulator.fail_identity(times=4, body=f'{{"access_token": "{token.reveal()}"}}')
        await fails_to_connect("a token in an error's body")
        await emulator.heal()
        await emulator.revoke(emulator.service_principal.object_id)
        await fails_to_connect("revoked")
        await emulator.heal()
        await _at_work(emulator, collector, errors)
        await _dropped(emulator)
        for _ in range(3):  # a ResourceWarning holds on to what it warns of
            gc.collect()
            while caught:
                collector.look("warning", str(caught.pop().message))
            await asyncio.sleep(0.02)

    for name, error in errors.items():
        collector.show(error, name)
        assert isinstance(error, Exception), name
    assert len([each for each in errors.values() if isinstance(each, EntraRedisError)]) >= 10
    assert collector.leaks == []
    assert {"aioentra_redis", "azure"} <= collector.loggers
    assert collector.seen > 300


class _Sealed:
    """A token in a local variable of a test, out of sight of the tracebacks that it looks at."""

    def __init__(self, token: str) -> None:
        self.reveal = lambda: token

    @classmethod
    async def issued_by(cls, emulator: Emulator) -> _Sealed:
        return cls(await emulator.issue_token())


async def _at_work(
    emulator: Emulator, collector: Collector, errors: dict[str, BaseException]
) -> None:
    """A client that connects, rotates, is refused, loses its connection, and is closed."""
    witness = Witness()
    async with minted_source(emulator, believed=1.0) as source:
        redis: EntraRedis = await client_of(emulator, source, on_event=witness, recovery_timeout=5)
        await redis.set("key", "value")
        assert await redis.ping()
        pipe = redis.pipeline()
        pipe.set("text", "x").incr("text")
        errors["pipeline"] = await error_of(pipe.execute())
        errors["blocking"] = await error_of(redis.execute_command("BLPOP", "text", 1))
        errors["command"] = await error_of(redis.incr("text"))
        errors["refused command"] = await error_of(redis.execute_command("SELECT", 1))
        errors["auth by hand"] = await error_of(redis.execute_command("AUTH", "someone", "word"))
        await emulator.refuse_auth()
        errors["refused AUTH"] = (await witness.first(ReauthenticationFailed)).error
        await redis.connection_pool.disconnect()
        errors["refused pipeline"] = await error_of(redis.pipeline().get("text").execute())
        await emulator.heal()
        await emulator.next_tokens(oid="0e11a500-0000-4000-8000-00000000beef")
        errors["other identity"] = (await witness.first(RefreshFailed)).error
        await emulator.next_tokens()
        writing = [asyncio.create_task(error_of(redis.blpop([f"q{n}"]))) for n in range(3)]
        await asyncio.sleep(0.05)
        await emulator.refuse_auth()
        await emulator.drop_connections()
        for number, each in enumerate(await asyncio.gather(*writing)):
            errors[f"blocked {number}"] = each
        await emulator.heal()
        async with asyncio.timeout(10):
            # Held back until the next token, or until the breaker's pause is over.
            while True:
                try:
                    assert await redis.ping()
                except SignInRefusedError as error:
                    errors["held back"] = error
                    await asyncio.sleep(0.05)
                else:
                    break
        things: list[object] = [
            source.current,
            copy.copy(source.current),
            copy.deepcopy(source.current),
            source.status,
            redis,
            redis.auth_status(),
            redis.connection_pool,
            redis.connection_pool.connection_kwargs,
            vars(redis),
            vars(source),
            source.subscribe(),
            connect(emulator.url, token_source=source),
            *witness.events,
        ]
        for thing in things:
            collector.show(thing, type(thing).__name__)
        await redis.aclose()
        errors["closed"] = await error_of(redis.get("key"))
    errors["closed source"] = await error_of(source.get())


async def _dropped(emulator: Emulator) -> None:
    """A client and a source that nobody closes warn, with their reprs."""
    source: TokenSource | None = minted_source(emulator, believed=60)
    redis: EntraRedis | None = await client_of(emulator, source)
    assert redis is not None
    await redis.ping()
    del redis, source
    gc.collect()
    async with asyncio.timeout(5):
        while await emulator.connections():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_the_collector_finds_what_it_looks_for(
    entra_emulator: Emulator, collector: Collector
) -> None:
    """Or the test above could not fail."""
    token = await _Sealed.issued_by(entra_emulator)
    logging.getLogger("somebody.else").debug("AUTH %s", token.reveal())

    def raising() -> None:
        password = token.reveal()
        raise ValueError(len(password))

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        raising()
    collector.show(caught.value, "an error")
    collector.show({"secret": entra_emulator.service_principal.secret}, "a dictionary")
    found = "\n".join(collector.leaks)
    assert "log of somebody.else" in found
    assert "an error, traceback with locals" in found
    assert "a dictionary, pickled" in found
    assert "eyJ" not in found


@pytest.mark.parametrize("protocol", [pickle.DEFAULT_PROTOCOL, pickle.HIGHEST_PROTOCOL])
async def test_errors_can_be_pickled_and_tokens_can_not(
    entra_emulator: Emulator, protocol: int
) -> None:
    await entra_emulator.revoke(entra_emulator.service_principal.object_id)
    async with secret_source(entra_emulator) as source:
        error = await error_of(client_of(entra_emulator, source))
        twin = pickle.loads(pickle.dumps(error, protocol))
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin)["stage"] == "auth"
        for each in (source.current, source, {"token": source.current}):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(each, protocol)
