"""Every way to make a client, weakened in every way: refused before a token is sent, or verified.

The server is one that a client must not trust: its certificate is for another name, or it has none
at all. What a weakening would do shows in what that server hears.
"""

from __future__ import annotations

import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest
import redis
import trustme
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from support.eavesdropper import Eavesdropper, certified, without_certificate
from support.token_fakes import CANARY, Clock, Credential, source_of

from aioentra_redis import EntraRedis, TokenSource, connect, entra_kwargs
from aioentra_redis.errors import ConfigurationError, ConnectError, InsecureConnectionError

pytestmark = [
    pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning"),
]

ANONYMOUS = "AECDH-AES256-SHA:@SECLEVEL=0"


# ------------------------------------------------------------------------------- what weakens


class OwnContext(SSLConnection):
    """Connects with a context of its own, which checks nothing."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return {**super()._connection_arguments(), "ssl": context}


class OwnAttribute(SSLConnection):
    """Has put such a context where redis-py keeps its."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.ssl_context.context = context


class OwnGet(SSLConnection):
    """The same, where redis-py makes it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        asked = self.ssl_context

        class Weak(type(asked)):  # type: ignore[misc]
            def get(self) -> ssl.SSLContext:
                context = super().get()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                return context  # type: ignore[no-any-return]

        asked.__class__ = Weak


class Disguised(SSLConnection):
    """Calls itself an SSLConnection and speaks in clear, to whom is left open."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": None}


KEYWORDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "host name False": {"ssl_check_hostname": False},
    "host name 0": {"ssl_check_hostname": 0},
    "host name None": {"ssl_check_hostname": None},
    "host name 'False'": {"ssl_check_hostname": "False"},
    "certificate none": {"ssl_cert_reqs": "none"},
    "certificate NONE": {"ssl_cert_reqs": "NONE"},
    "certificate None": {"ssl_cert_reqs": None},
    "certificate CERT_NONE": {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False},
    "certificate 0": {"ssl_cert_reqs": 0},
    "certificate optional": {"ssl_cert_reqs": "optional"},
    "certificate typo": {"ssl_cert_reqs": "non"},
    "both": {"ssl_cert_reqs": "none", "ssl_check_hostname": False},
    "TLS 1.1": {"ssl_min_version": ssl.TLSVersion.TLSv1_1},
    "any TLS": {"ssl_min_version": ssl.TLSVersion.MINIMUM_SUPPORTED},
    "TLS as text": {"ssl_min_version": "TLSv1"},
    "anonymous ciphers": {"ssl_ciphers": ANONYMOUS},
    "all ciphers": {"ssl_ciphers": "ALL:@SECLEVEL=0"},
    "CERT_REQUIRED": {"ssl_cert_reqs": ssl.CERT_REQUIRED},
}
if redis.VERSION >= (7,):
    KEYWORDS |= {
        "proxy certificates": {"ssl_include_verify_flags": [ssl.VERIFY_ALLOW_PROXY_CERTS]},
        "less strict": {"ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT]},
    }

TOO_WEAK = (
    *("host name False", "host name 0", "certificate none", "certificate NONE", "both"),
    *("certificate None", "certificate CERT_NONE", "certificate 0", "certificate optional"),
    *("TLS 1.1", "any TLS", "anonymous ciphers", "all ciphers"),
)

QUERIES = {
    "host name": "ssl_check_hostname=false",
    "host name No": "ssl_check_hostname=No",
    "certificate": "ssl_cert_reqs=none",
    "certificate NONE": "ssl_cert_reqs=NONE",
    "certificate optional": "ssl_cert_reqs=optional",
    "both": "ssl_cert_reqs=none&ssl_check_hostname=0",
    "TLS 1.0": "ssl_min_version=769",
    "anonymous ciphers": f"ssl_ciphers={quote(ANONYMOUS)}",
    "our own lifting": "allow_insecure_tls=true",
    "another class": "connection_class=Connection",
    "no TLS": "ssl=false",
}
if redis.VERSION >= (7,):
    QUERIES["proxy certificates"] = "ssl_include_verify_flags=[VERIFY_ALLOW_PROXY_CERTS]"

CLASSES: dict[str, type[SSLConnection]] = {
    each.__name__: each for each in (OwnContext, OwnAttribute, OwnGet)
}


# ------------------------------------------------------------------------------- ways to make one

Make = Callable[..., Any]


def once() -> dict[str, Any]:
    """No retries, and time to be refused in, however busy the machine is."""
    return {"retry": Retry(NoBackoff(), 0), "socket_connect_timeout": 30}


async def by_connect(source: TokenSource, port: int, query: str = "", **options: Any) -> Any:
    url = f"rediss://localhost:{port}{query}"
    patient = {"open_timeout": 30, "recovery_timeout": 30}
    return await connect(url, token_source=source, cluster=False, **patient, **options)


async def by_class(source: TokenSource, port: int, **options: Any) -> Any:
    return EntraRedis(token_source=source, host="localhost", port=port, ssl=True, **options)


async def by_url(source: TokenSource, port: int, query: str = "", **options: Any) -> Any:
    url = f"rediss://localhost:{port}{query}"
    return EntraRedis.from_url(url, token_source=source, **options)


async def by_pool(source: TokenSource, port: int, query: str = "", **options: Any) -> Any:
    pool = ConnectionPool.from_url(f"rediss://localhost:{port}{query}", **options)
    return EntraRedis.from_pool(pool, token_source=source)


async def by_blocking_pool(source: TokenSource, port: int, **options: Any) -> Any:
    kind = options.pop("connection_class", SSLConnection)
    pool = BlockingConnectionPool(connection_class=kind, host="localhost", port=port, **options)
    return EntraRedis(connection_pool=pool, token_source=source)


async def by_pool_of_redis_py(source: TokenSource, port: int, **options: Any) -> Any:
    pool = Redis(host="localhost", port=port, ssl=True, **options).connection_pool
    return EntraRedis.from_pool(pool, token_source=source)


async def by_sentinel(source: TokenSource, port: int, **options: Any) -> Any:
    pool = sentinel(port).master_for("cache", ssl=True, **options).connection_pool
    return EntraRedis.from_pool(pool, token_source=source)


async def plain_url(source: TokenSource, port: int, query: str = "", **options: Any) -> Any:
    options = {**entra_kwargs(source), **options}
    return Redis.from_url(f"rediss://localhost:{port}{query}", **options)


async def plain_class(source: TokenSource, port: int, **options: Any) -> Any:
    return Redis(host="localhost", port=port, ssl=True, **entra_kwargs(source), **options)


async def plain_single(source: TokenSource, port: int, **options: Any) -> Any:
    options = {**entra_kwargs(source), **options, "single_connection_client": True}
    return Redis(host="localhost", port=port, ssl=True, **options)


async def plain_pool(source: TokenSource, port: int, **options: Any) -> Any:
    options = {"connection_class": SSLConnection, **entra_kwargs(source), **options}
    return Redis.from_pool(BlockingConnectionPool(host="localhost", port=port, **options))


async def plain_sentinel(source: TokenSource, port: int, **options: Any) -> Any:
    return sentinel(port).master_for("cache", ssl=True, **entra_kwargs(source), **options)


def sentinel(port: int) -> Sentinel:
    """One that names this port as the master of everything, without asking anybody."""
    made = Sentinel([])

    async def discover_master(name: str) -> tuple[str, int]:
        return ("localhost", port)

    made.discover_master = discover_master  # type: ignore[method-assign]
    return made


OURS: tuple[Make, ...] = (
    *(by_connect, by_class, by_url, by_pool, by_blocking_pool, by_pool_of_redis_py, by_sentinel),
)
PLAIN: tuple[Make, ...] = (plain_url, plain_class, plain_single, plain_pool, plain_sentinel)
WITH_QUERY = (by_connect, by_url, by_pool, plain_url)
WITH_CLASS = (by_blocking_pool, plain_pool)
"""A URL that begins with rediss:// has a class of its own, and a keyword does not change it."""


# ------------------------------------------------------------------------------- the sweep


class Place:
    """A source of tokens and the servers that must not get one."""

    def __init__(self, ca_file: str) -> None:
        self.ca_file = ca_file
        clock = Clock()
        self.source = source_of(Credential(clock), clock)
        self.misnamed = Eavesdropper()
        self.anonymous = Eavesdropper()
        self.clear = Eavesdropper()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def place(authority: trustme.CA, tmp_path_factory: Any) -> AsyncIterator[Place]:
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    made = Place(str(ca_file))
    async with (
        made.source,
        made.misnamed.listening(certified(authority, "elsewhere.example")),
        made.anonymous.listening(without_certificate()),
    ):
        yield made


async def outcome(make: Make, source: TokenSource, port: int, *args: str, **options: Any) -> Any:
    """What becomes of a first command: the error that it, or making the client, raises."""
    client = None
    try:
        client = await make(source, port, *args, **once(), **options)
        await client.ping()
    except Exception as error:
        return error
    finally:
        if client is not None:
            with contextlib.suppress(redis.RedisError):
                await client.aclose()
            with contextlib.suppress(redis.RedisError):
                await client.connection_pool.disconnect()
    return None


REFUSED = (InsecureConnectionError, redis.RedisError)
UNTOLD = (TypeError, ValueError, redis.RedisError, AttributeError)
"""What redis-py raises, in some version, for options that make no sense."""


def fine(error: object, listener: Eavesdropper) -> bool:
    """Whether it is refused or has been verified, and nothing of a token was heard."""
    return isinstance(error, UNTOLD) and CANARY.encode() not in listener.heard


async def sweep(make: Make, place: Place, cases: Mapping[str, Any]) -> dict[str, Any]:
    """Each case against each server; returns the errors by case, having checked what was heard."""
    errors: dict[str, Any] = {}
    for name, (args, options) in cases.items():
        for listener in (place.misnamed, place.anonymous):
            if listener is place.anonymous and "ciphers" not in name:
                continue
            options = {"ssl_ca_certs": place.ca_file, **options}
            error = await outcome(make, place.source, listener.port, *args, **options)
            assert fine(error, listener), f"{make.__name__} with {name}: {error!r}"
            errors[name] = error
    return errors


@pytest.mark.parametrize("make", OURS + PLAIN, ids=lambda make: make.__name__)
async def test_keywords(place: Place, make: Make) -> None:
    errors = await sweep(make, place, {name: ((), each) for name, each in KEYWORDS.items()})
    nothing = errors["nothing"]
    if redis.VERSION < (6,) and make is by_pool_of_redis_py:
        assert "ssl_check_hostname=False" in str(nothing)  # its default, passed on as if asked for
    else:
        assert "Hostname mismatch" in str(nothing)
        assert isinstance(nothing, ConnectError if make in OURS else redis.ConnectionError)
    if make not in OURS:
        # Seen once the connection stands, which it only does where the certificate is of no matter.
        for name in ("certificate none", "certificate NONE", "both", "anonymous ciphers"):
            assert isinstance(errors[name], REFUSED), (name, errors[name])
        return
    for name in TOO_WEAK:
        assert isinstance(errors[name], InsecureConnectionError), (name, errors[name])
    for name in ("certificate typo", "TLS as text"):
        assert isinstance(errors[name], ConfigurationError), (name, errors[name])


@pytest.mark.parametrize("make", WITH_QUERY, ids=lambda make: make.__name__)
async def test_queries(place: Place, make: Make) -> None:
    cases = {name: ((f"?{each}",), {}) for name, each in QUERIES.items()}
    errors = await sweep(make, place, cases)
    for name in ("certificate", "both", "anonymous ciphers"):
        assert isinstance(errors[name], InsecureConnectionError), (name, errors[name])
    if make in OURS:
        for name in ("host name", "certificate NONE", "certificate optional"):
            assert isinstance(errors[name], InsecureConnectionError), (name, errors[name])


@pytest.mark.parametrize("make", WITH_CLASS, ids=lambda make: make.__name__)
async def test_connection_classes(place: Place, make: Make) -> None:
    cases = {name: ((), {"connection_class": each}) for name, each in CLASSES.items()}
    errors = await sweep(make, place, cases)
    assert "any certificate would do" in str(errors["OwnContext"])


@pytest.mark.parametrize("make", [by_connect, by_url, by_pool, plain_url], ids=lambda m: m.__name__)
async def test_a_connection_class_beside_a_url(place: Place, make: Make) -> None:
    cases: dict[str, Any] = {
        name: ((), {"connection_class": each}) for name, each in CLASSES.items()
    }
    errors = await sweep(
        make, place, {**cases, "Connection": ((), {"connection_class": Connection})}
    )
    for name, error in errors.items():
        assert "Hostname mismatch" in str(error), (name, error)


@pytest.mark.parametrize("kind", [Disguised, Connection])
@pytest.mark.parametrize("make", WITH_CLASS, ids=lambda make: make.__name__)
async def test_a_class_that_speaks_in_clear(
    place: Place, make: Make, kind: type[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like TLS is loopback here; taken for another machine, it gets nothing."""
    monkeypatch.setattr("aioentra_redis._redis_py._peer.is_loopback", lambda host: False)
    options: dict[str, Any] = {"connection_class": kind}
    if kind is Disguised:
        options["ssl_ca_certs"] = place.ca_file
    async with place.clear.listening(None):
        error = await outcome(make, place.source, place.clear.port, **options)
    assert "not this machine" in str(error), error
    assert isinstance(error, (InsecureConnectionError, redis.ConnectionError))
    assert bytes(place.clear.heard) == b""


# ------------------------------------------------------------------------------- the sweep can fail


@pytest.mark.parametrize(
    "weak", [{"ssl_check_hostname": False}, {"ssl_cert_reqs": "none", "ssl_check_hostname": False}]
)
async def test_a_server_of_another_name_hears_who_does_not_check(
    place: Place, weak: dict[str, Any]
) -> None:
    options = {"ssl": True, "ssl_ca_certs": place.ca_file, "password": CANARY, **weak, **once()}
    client = Redis(host="localhost", port=place.misnamed.port, **options)
    with contextlib.suppress(redis.RedisError):
        await client.ping()
    await client.aclose()
    assert CANARY.encode() in place.misnamed.heard


async def test_a_server_without_a_certificate_hears_who_allows_it(place: Place) -> None:
    """The check of host names is no help: there is no certificate to look into."""
    options = {"ssl": True, "ssl_ca_certs": place.ca_file, "ssl_check_hostname": True, **once()}
    client = Redis(
        host="localhost",
        port=place.anonymous.port,
        password=CANARY,
        ssl_ciphers=ANONYMOUS,
        **options,
    )
    with contextlib.suppress(redis.RedisError):
        await client.ping()
    await client.aclose()
    assert CANARY.encode() in place.anonymous.heard


@pytest.mark.parametrize("make", [by_connect, by_class, by_pool], ids=lambda make: make.__name__)
async def test_what_is_lifted_is_lifted_and_warned_of(place: Place, make: Make) -> None:
    """And nothing else is: redis-py 5 would not check host names either."""
    options = {"ssl_ca_certs": place.ca_file}

    def allowing(source: TokenSource, port: int, **options: Any) -> Any:
        if make is by_pool:
            pool = ConnectionPool.from_url(f"rediss://localhost:{port}", **options)

            async def made() -> Any:
                return EntraRedis.from_pool(pool, token_source=source, allow_insecure_tls=True)

            return made()
        return make(source, port, allow_insecure_tls=True, **options)

    port = place.misnamed.port
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = await outcome(allowing, place.source, port, **options)
        assert isinstance(error, ConnectError)
        error = await outcome(
            allowing, place.source, port, **options, ssl_min_version=ssl.TLSVersion.TLSv1_1
        )
        assert isinstance(error, ConnectError)
    assert bytes(place.misnamed.heard) == b""
    assert len([each for each in caught if "insecure TLS" in str(each.message)]) == 1
    with pytest.warns(RuntimeWarning, match="insecure TLS allowed: ssl_check_hostname"):
        await outcome(allowing, place.source, port, **options, ssl_check_hostname=False)
    assert CANARY.encode() in place.misnamed.heard
