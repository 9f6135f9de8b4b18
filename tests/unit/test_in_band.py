"""AUTH among the owner's own commands: never out of step, never a silent reconnect, no secret."""

from __future__ import annotations

import asyncio
import io
import math
import traceback
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.scripted_peer import CUT, HANG, OK, Peer, bulk
from support.token_fakes import CANARY, EPOCH, jwt
from support.wired import wired

from aioentra_redis._redis_py import InBand
from aioentra_redis._schedule import AUTH_TIMEOUT
from aioentra_redis._token import Token

pytestmark = pytest.mark.looptime

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
MULTI_SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"


def token(version: int) -> Token:
    return Token(
        jwt({"oid": "oid-1"}),
        username="oid-1",
        expires_on=EPOCH + 3600,
        first_seen=EPOCH,
        version=version,
    )


class Place:
    """One redis-py connection to a scripted peer, wrapped as a plain client's would be."""

    def __init__(self, **options: Any) -> None:
        self.peer = Peer()
        self.held = 1
        self.newest: Token | None = None
        self.heard: list[tuple[int, Exception | None]] = []
        self.connection: Any = wired(self.peer)(**{"protocol": 2, **options})
        self.in_band = InBand(
            self.connection,
            send=self.connection.send_packed_command,
            read=self.connection.read_response,
            due=self.due,
            learned=self.learned,
        )
        self.connection.send_packed_command = self.in_band.send
        self.connection.read_response = self.in_band.read
        self.connection.redis_connect_func = self.sign_in

    async def sign_in(self, connection: Any) -> None:
        await connection.on_connect()
        self.in_band.begin()

    def due(self) -> Token | None:
        newest = self.newest
        return newest if newest is not None and newest.version > self.held else None

    def learned(self, token: Token, error: Exception | None) -> None:
        self.heard.append((token.version, error))
        self.held = token.version

    async def run(self, *words: Any) -> Any:
        await self.connection.send_command(*words)
        return await self.connection.read_response()

    def names(self) -> list[str]:
        names = [words[0].decode() for words in self.peer.commands]
        return [name for name in names if name not in ("CLIENT", "HELLO")]


@pytest.fixture
async def place(request):
    made = Place(**getattr(request, "param", {}))
    yield made
    await made.connection.disconnect(nowait=True)
    await asyncio.sleep(0)


# -------------------------------------------------------------------------- in front of a command


async def test_auth_goes_in_front_of_the_owners_next_command(place: Place):
    assert await place.run("ECHO", "a") == b"a"
    place.newest = token(2)
    assert await place.run("ECHO", "b") == b"b"
    assert await place.run("ECHO", "c") == b"c"
    assert place.names() == ["ECHO", "AUTH", "ECHO", "ECHO"]
    assert place.heard == [(2, None)]
    assert place.peer.seen("AUTH") == [[b"AUTH", b"oid-1", place.newest.secret.encode()]]


@pytest.mark.parametrize("place", [{"protocol": 3}], indirect=True)
async def test_replies_stay_in_step_with_resp3_and_pushes_between(place: Place):
    place.peer.script["AUTH"] = lambda *_: b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n" + OK
    for number in range(1, 5):
        place.newest = token(number)
        assert await place.run("ECHO", f"{number}") == b"%d" % number
    assert [version for version, _ in place.heard] == [2, 3, 4]


async def test_a_reply_that_is_owed_is_never_taken_for_auths(place: Place):
    await place.connection.send_command("ECHO", "first")
    place.newest = token(2)
    await place.connection.send_command("ECHO", "second")
    assert await place.connection.read_response() == b"first"
    await place.connection.send_command("ECHO", "third")
    assert not await place.in_band.run_in_background(place.newest)
    assert await place.connection.read_response() == b"second"
    assert await place.connection.read_response() == b"third"
    assert place.heard == []
    assert await place.run("ECHO", "fourth") == b"fourth"
    assert place.names() == ["ECHO"] * 3 + ["AUTH", "ECHO"]


async def test_an_error_reply_is_a_reply(place: Place):
    with pytest.raises(redis_exceptions.ResponseError):
        await place.run("NONSENSE")
    place.newest = token(2)
    assert await place.run("ECHO", "a") == b"a"
    assert place.names() == ["NONSENSE", "AUTH", "ECHO"]


async def test_never_between_multi_and_exec(place: Place):
    place.peer.script.update(
        MULTI=lambda *_: OK, EXEC=lambda *_: b"*1\r\n:1\r\n", INCR=lambda *_: b"+QUEUED\r\n"
    )
    await place.run("MULTI")
    place.newest = token(2)
    assert not await place.in_band.run_in_background(place.newest)
    await place.run("INCR", "k")
    assert await place.run("EXEC") == [1]
    assert "AUTH" not in place.names()
    await place.run("ECHO", "a")
    assert place.names()[-2:] == ["AUTH", "ECHO"]


@pytest.mark.parametrize("name", ["MONITOR", "SUBSCRIBE"])
async def test_never_on_a_connection_that_listens(place: Place, name: str):
    place.peer.script.update(MONITOR=lambda *_: OK, SUBSCRIBE=lambda *_: MULTI_SUBSCRIBED)
    await place.run(name, "c")
    place.newest = token(2)
    assert not await place.in_band.run_in_background(place.newest)
    assert not await place.in_band.run_in_background()
    await place.connection.send_command("PING")
    assert place.heard == []
    assert place.names() == [name, "PING"]


async def test_a_read_that_timed_out_leaves_its_reply_owed(place: Place):
    place.peer.script["ECHO"] = [[1.0, bulk("late")]]
    await place.connection.send_command("ECHO", "late")
    assert await place.connection.read_response(timeout=0.5) is None
    place.newest = token(2)
    assert not await place.in_band.run_in_background(place.newest)
    assert await place.connection.read_response(timeout=5) == b"late"
    assert await place.in_band.run_in_background(place.newest)


@pytest.mark.parametrize("timeout", [5, math.inf, None])
async def test_a_null_reply_within_the_timeout_is_a_reply(place: Place, timeout: float | None):
    if timeout == math.inf and int(redis.__version__.split(".")[0]) < 8:
        timeout = None
    place.peer.script["GET"] = [[0.1, b"$-1\r\n"]]
    await place.connection.send_command("GET", "k")
    assert await place.connection.read_response(timeout=timeout) is None
    assert place.in_band.idle


# -------------------------------------------------------------------------- refusals and losses


@pytest.mark.parametrize("refusal", [WRONGPASS, b"-ERR AUTH is broken\r\n", b"-NOPERM no\r\n"])
async def test_a_refusal_never_reaches_the_owner(place: Place, refusal: bytes):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [refusal]
    place.newest = token(2)
    assert await place.run("ECHO", "b") == b"b"
    ((version, error),) = place.heard
    assert version == 2
    assert isinstance(error, redis_exceptions.RedisError)
    assert error.__traceback__ is None
    assert place.peer.dials == 1  # although redis-py closes connections after such a reply
    place.newest = token(3)
    assert await place.in_band.run_in_background(place.newest)
    assert place.heard[-1] == (3, None)


@pytest.mark.parametrize("answer", [CUT, HANG])
async def test_a_loss_in_front_of_a_command_is_the_owners(place: Place, answer: str):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [answer]
    place.newest = token(2)
    kind: Any = redis_exceptions.ConnectionError if answer is CUT else redis_exceptions.TimeoutError
    with pytest.raises(kind) as caught:
        await place.run("ECHO", "b")
    assert not place.connection.is_connected
    assert place.heard == []
    assert CANARY not in _everything(caught.value)
    # Told once; the next command connects, as redis-py's own would after an error.
    place.held = 2
    assert await place.run("ECHO", "c") == b"c"
    assert place.peer.dials == 2


async def test_a_loss_in_the_background_is_the_owners_at_the_next_send(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [[0.1, CUT]]
    with pytest.raises(redis_exceptions.ConnectionError):
        await place.in_band.run_in_background(token(2))
    assert not place.in_band.idle
    with pytest.raises(redis_exceptions.ConnectionError):
        await place.run("ECHO", "b")
    assert await place.run("ECHO", "c") == b"c"


async def test_a_loss_in_the_background_is_forgotten_by_a_checkout(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [CUT]
    with pytest.raises(redis_exceptions.ConnectionError):
        await place.in_band.run_in_background(token(2))
    await place.connection.connect()  # what a pool does first
    assert await place.run("ECHO", "b") == b"b"


async def test_a_lost_watch_is_a_watch_error():
    place = Place(retry=Retry(NoBackoff(), 3))
    place.peer.script.update(WATCH=lambda *_: OK, UNWATCH=lambda *_: OK)
    place.peer.script["AUTH"] = [CUT]
    pool = _pool_of(place)
    client = redis.asyncio.Redis(connection_pool=pool)
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        place.newest = token(2)
        with pytest.raises(redis_exceptions.WatchError):
            await pipe.get("k")
    await pool.disconnect()


def _pool_of(place: Place) -> redis.asyncio.ConnectionPool:
    pool = redis.asyncio.ConnectionPool()
    pool.make_connection = lambda: place.connection  # type: ignore[method-assign]
    return pool


async def test_the_owner_waits_for_the_background(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [[2.0, OK]]
    background = asyncio.create_task(place.in_band.run_in_background(token(2)))
    await asyncio.sleep(0.5)
    assert not place.in_band.idle
    assert not await place.in_band.run_in_background()
    started = asyncio.get_running_loop().time()
    settled = asyncio.create_task(place.in_band.settled())
    assert await place.run("ECHO", "b") == b"b"
    assert asyncio.get_running_loop().time() - started == pytest.approx(1.5, abs=0.01)
    assert await background
    assert settled.done()
    assert place.names() == ["ECHO", "AUTH", "ECHO"]


async def test_an_owner_who_gives_up_waiting_disturbs_nothing(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [[2.0, OK]]
    background = asyncio.create_task(place.in_band.run_in_background(token(2)))
    await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await place.run("ECHO", "b")
    assert await background
    assert await place.run("ECHO", "c") == b"c"
    assert place.names() == ["ECHO", "AUTH", "ECHO"]
    assert place.peer.dials == 1


async def test_an_owner_who_is_cancelled_in_an_auth_closes_the_connection(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [[2.0, OK]]
    place.newest = token(2)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(1):
            await place.run("ECHO", "b")
    assert CANARY not in _everything(caught.value)
    assert not place.connection.is_connected
    assert await place.run("ECHO", "c") == b"c"
    assert place.peer.dials == 2


async def test_a_background_that_is_cancelled_closes_the_connection_and_says_so(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [HANG]
    background = asyncio.create_task(place.in_band.run_in_background(token(2)))
    await asyncio.sleep(0.1)
    background.cancel()
    with pytest.raises(asyncio.CancelledError):
        await background
    assert not place.connection.is_connected
    with pytest.raises(redis_exceptions.ConnectionError, match="in the middle"):
        await place.run("ECHO", "b")


async def test_an_owner_who_reconnects_under_the_background_keeps_the_new_connection(place: Place):
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [HANG]
    background = asyncio.create_task(place.in_band.run_in_background(token(2)))
    await asyncio.sleep(0.1)
    await place.connection.disconnect(nowait=True)
    await place.connection.connect()
    with pytest.raises(redis_exceptions.ConnectionError):
        await background
    assert place.connection.is_connected
    assert await place.run("ECHO", "b") == b"b"
    assert place.peer.dials == 2


async def test_a_ping_in_the_background(place: Place):
    await place.run("ECHO", "a")
    await asyncio.sleep(60)
    assert place.in_band.last_used == asyncio.get_running_loop().time() - 60
    assert await place.in_band.run_in_background()
    assert place.in_band.last_used == asyncio.get_running_loop().time()
    place.peer.script["PING"] = [b"-NOPERM no PING for you\r\n", CUT]
    assert await place.in_band.run_in_background()
    with pytest.raises(redis_exceptions.ConnectionError):
        await place.in_band.run_in_background()
    assert place.heard == []


async def test_an_auth_may_take_longer_than_socket_timeout(place: Place):
    place.connection.socket_timeout = 0.5
    await place.run("ECHO", "a")
    place.peer.script["AUTH"] = [[AUTH_TIMEOUT - 1, OK]]
    place.newest = token(2)
    assert await place.run("ECHO", "b") == b"b"


# -------------------------------------------------------------------------- around the connection


async def test_the_handshake_passes_as_it_is(place: Place):
    place.newest = token(2)
    place.connection.client_name = "me"
    assert not place.in_band.signed_in
    assert not await place.in_band.run_in_background(place.newest)
    await place.connection.connect()
    assert place.in_band.signed_in
    assert place.heard == []  # a handshake signs in with the newest token by itself
    await place.connection.disconnect()
    assert not place.in_band.signed_in


@pytest.mark.parametrize("place", [{"health_check_interval": 10}], indirect=True)
async def test_a_health_check_where_no_auth_tells_as_much(place: Place):
    await place.run("ECHO", "a")
    await asyncio.sleep(11)
    assert await place.run("ECHO", "b") == b"b"
    assert place.names()[-3:] == ["ECHO", "PING", "ECHO"]
    await asyncio.sleep(11)
    place.newest = token(2)
    assert await place.run("ECHO", "c") == b"c"
    assert place.names()[-3:] == ["ECHO", "AUTH", "ECHO"]  # an answer is as good as a PING's


@pytest.mark.parametrize("place", [{"health_check_interval": 10}], indirect=True)
async def test_a_health_check_that_reconnects(place: Place):
    place.connection.retry = Retry(NoBackoff(), 1)
    await place.run("ECHO", "a")
    await asyncio.sleep(11)
    place.peer.cut()
    await asyncio.sleep(0)
    assert await place.run("ECHO", "b") == b"b"
    assert place.peer.dials == 2
    assert place.in_band.idle


async def test_half_a_transaction_is_forgotten_with_its_connection(place: Place):
    place.peer.script["MULTI"] = [OK]
    await place.run("MULTI")
    await place.connection.send_command("ECHO", "a")
    await place.connection.disconnect()
    assert await place.run("ECHO", "b") == b"b"
    assert place.in_band.idle


async def test_nothing_shows_the_token(place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    await place.run("ECHO", "a")
    place.newest = token(2)
    await place.run("ECHO", "b")
    place.connection._writer.transport.refuses = RuntimeError("the handler is closed")
    place.newest = token(3)
    with pytest.raises(redis_exceptions.ConnectionError, match="handler is closed") as caught:
        await place.run("ECHO", "c")
    assert CANARY not in _everything(caught.value)
    assert CANARY not in caplog.text


def _everything(error: BaseException) -> str:
    """What a traceback shows that is rendered with the variables of each frame."""
    shown = io.StringIO()
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    for line in told.format():
        shown.write(line)
    return shown.getvalue() + repr(error.args)
