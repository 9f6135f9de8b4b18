"""``entra_kwargs`` in virtual time: days of hourly tokens on one connection of redis-py's."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.scripted_peer import CUT, HANG, HELLO, OK, Peer
from support.token_fakes import CANARY, Clock, Credential, source_of
from support.wired import wired

from aioentra_redis import (
    ConfigurationError,
    ConnectionLostError,
    ConnectionState,
    ConnectTimeoutError,
    EntraRedis,
    InsecureConnectionError,
    SignInRefusedError,
    TokenSource,
    entra_kwargs,
)
from aioentra_redis._redis_py._plain import HANDSHAKE_TIMEOUT
from aioentra_redis._renewal import Renewal
from aioentra_redis._schedule import reauth_deadline
from aioentra_redis._traffic import Traffic

pytestmark = pytest.mark.looptime

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
HOUR = 3600.0


class Place:
    """A client of redis-py's on a scripted peer, and the source of its tokens."""

    def __init__(self, *, life: float = HOUR, **options: Any) -> None:
        self.peer = Peer()
        self.auths: list[tuple[float, int, bytes]] = []
        self.peer.script["AUTH"] = self.auth
        self.peer.script["HELLO"] = self.hello
        self.answers: list[Any] = []
        self.clock = Clock()
        self.credential = Credential(self.clock, life=life)
        self.source = source_of(self.credential, self.clock, factory=True)
        self.pool = ConnectionPool(
            connection_class=wired(self.peer),
            **{"protocol": 3, "retry": Retry(NoBackoff(), 0), **options},
            **entra_kwargs(self.source),
        )
        self.client = Redis(connection_pool=self.pool)

    def auth(self, *words: bytes) -> Any:
        now = asyncio.get_running_loop().time()
        assert self.source.current is not None
        self.auths.append((now, self.source.current.version, words[-1]))
        return self.answers.pop(0) if self.answers else OK

    def hello(self, *words: bytes) -> Any:
        return HELLO

    @property
    def versions(self) -> list[int]:
        return [version for _, version, _ in self.auths]

    async def close(self) -> None:
        await self.client.aclose()
        await self.pool.disconnect()
        await self.source.aclose()
        await asyncio.sleep(0)


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made = Place(**getattr(request, "param", {}))
    yield made
    await made.close()


RESP2 = pytest.mark.parametrize("place", [{"protocol": 2}], indirect=True)


# ------------------------------------------------------------------------------- days of tokens


async def test_a_day_of_commands(place: Place):
    """A command every 40 seconds: each token once, three minutes before the former one expires."""
    for turn in range(24 * 90):
        await place.client.set("turn", turn)
        await asyncio.sleep(40)
    assert len(place.peer.connections) == 1
    assert len(place.auths) >= 24
    assert place.versions == list(range(2, 2 + len(place.auths)))
    assert len({secret for _, _, secret in place.auths}) == len(place.auths)
    # Tokens are renewed at 0.8 of their life, and each AUTH comes in half of the time left to the
    # deadline at the latest.
    for earlier, later in zip([0.0] + [at for at, _, _ in place.auths], place.auths, strict=False):
        assert later[0] - earlier < HOUR - 180


async def test_hours_of_waiting_for_messages(place: Place):
    """Nothing is published, and nothing but AUTH is sent."""
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    got: list[Any] = []

    async def listen() -> None:
        async for message in pubsub.listen():
            got.append(message["data"])  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    await asyncio.sleep(3 * HOUR)
    assert place.versions == list(range(2, 2 + len(place.auths)))
    assert len(place.auths) >= 3
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    await asyncio.sleep(1)
    assert got == [1, b"hello"]
    listening.cancel()
    await asyncio.wait([listening])
    await pubsub.aclose()


# ------------------------------------------------------------------------------- refused


async def test_a_refused_token_is_tried_again_at_decent_intervals_and_no_command_fails(
    place: Place, caplog: pytest.LogCaptureFixture
):
    place.answers = [WRONGPASS] * 5
    with caplog.at_level(logging.DEBUG):
        turn = 0
        while asyncio.get_running_loop().time() < HOUR:
            turn += 1
            assert await place.client.echo(str(turn)) == str(turn).encode()
            await asyncio.sleep(0.5 if place.source.current.version == 2 else 60)
    assert place.versions == [2] * 6
    gaps = [b - a for (a, *_), (b, *_) in zip(place.auths, place.auths[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 16], abs=1.1)
    assert len(place.peer.connections) == 1
    assert CANARY not in caplog.text
    assert "was refused" in caplog.text


async def test_a_newer_token_is_not_kept_waiting_by_a_refused_one(place: Place):
    place.answers = [WRONGPASS] * 50
    while not place.auths:
        await place.client.ping()
        await asyncio.sleep(10)
    await asyncio.sleep(100)
    place.answers = []
    await place.client.ping()
    assert place.versions == [2, 2]


async def test_refused_while_a_subscriber_waits(place: Place):
    place.answers = [WRONGPASS] * 3
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    waiting = asyncio.create_task(pubsub.get_message(timeout=HOUR - 1))
    assert await waiting is None
    assert place.versions == [2] * 4
    assert len(place.peer.connections) == 1
    await pubsub.aclose()


# ------------------------------------------------------------------------------- subscribers


async def subscribed(place: Place) -> Any:
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda _, name: (
        b">3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n" % name
    )
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    return pubsub


async def test_no_auth_while_a_subscription_is_unconfirmed(place: Place):
    """Its refusal could not be told from AUTH's."""
    pubsub = await subscribed(place)
    place.peer.script["SUBSCRIBE"] = [
        [3500.0, b"-NOPERM this user has no permissions to access the channel\r\n"]
    ]
    await pubsub.subscribe("b")
    with pytest.raises(redis_exceptions.ResponseError, match="permission"):
        await pubsub.get_message(timeout=3550)
    assert place.auths == []
    await pubsub.get_message(timeout=2)
    assert place.versions == [2]
    await pubsub.aclose()


async def test_an_answer_to_auth_that_is_late_finds_the_next_read(place: Place):
    """The owner stops reading, changes its subscriptions and reads on: nothing is out of step."""
    pubsub = await subscribed(place)
    place.answers = [[5.0, OK]]
    while not place.auths:
        assert await pubsub.get_message(timeout=1) is None
    await pubsub.subscribe("b")
    await pubsub.ping()
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    await asyncio.sleep(10)
    assert (await pubsub.get_message(timeout=1) or {})["data"] == b"hello"
    assert (await pubsub.get_message(timeout=1) or {})["channel"] == b"b"
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "pong"
    assert await pubsub.get_message(timeout=60) is None
    assert place.versions == [2]
    await pubsub.aclose()


async def test_a_cancelled_read_loses_no_answer_and_leaves_no_timer(place: Place):
    pubsub = await subscribed(place)
    place.answers = [[30.0, OK]]
    waiting = asyncio.create_task(pubsub.get_message(timeout=None))
    while not place.auths:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(2 * HOUR)
    assert place.versions == [2]  # nobody reads: nothing is sent
    place.clock.offset = -2 * HOUR  # (the connection is as young as it was)
    assert await pubsub.get_message(timeout=10) is None
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    assert (await pubsub.get_message(timeout=10) or {})["data"] == b"hello"
    await pubsub.aclose()


@pytest.mark.skipif(redis.VERSION < (6,), reason="it subscribes again after time-outs only")
async def test_a_connection_lost_under_auth_is_made_anew_and_subscribed_again(place: Place):
    place.pool.connection_kwargs["retry"] = Retry(NoBackoff(), 1)
    pubsub = await subscribed(place)
    place.answers = [[CUT]]
    got: list[Any] = []

    async def listen() -> None:
        async for message in pubsub.listen():
            got.append(message["type"])  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    await asyncio.sleep(2 * HOUR)
    assert got == ["subscribe"]
    assert len(place.peer.connections) == 2
    assert place.versions[0] == 2
    assert len(place.versions) >= 2
    listening.cancel()
    await asyncio.wait([listening])
    await pubsub.aclose()


@RESP2
async def test_a_resp2_subscriber_gets_no_auth(place: Place):
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    assert await pubsub.get_message(timeout=HOUR - 10) is None
    assert len(place.auths) == 1
    place.peer.cut()
    with pytest.raises(redis_exceptions.ConnectionError):
        await pubsub.get_message(timeout=1)
    await pubsub.aclose()


# ------------------------------------------------------------------------------- other modes


async def test_no_auth_between_multi_and_exec(place: Place):
    connection = await place.pool.get_connection()
    place.peer.script |= {
        "MULTI": lambda *_: OK,
        "EXEC": lambda *_: b"*1\r\n+OK\r\n",
        "SET": lambda *_: b"+QUEUED\r\n",
    }
    for command in (["MULTI"], ["SET", "a", "b"], ["SET", "a", "c"], ["EXEC"]):
        await connection.send_command(*command)
        await connection.read_response()
        if command != ["EXEC"]:
            await asyncio.sleep(1100)
            assert place.auths == []
    await connection.send_command("PING")
    await connection.read_response()
    assert place.versions == [2]
    await place.pool.release(connection)


async def test_no_auth_on_a_monitor(place: Place):
    place.peer.script["MONITOR"] = lambda *_: OK
    async with place.client.monitor() as monitor:
        line = b'+1339518083.107412 [0 127.0.0.1:60866] "get" "x"\r\n'
        for _ in range(4):
            place.peer.push(line)
            assert (await monitor.next_command())["command"] == "get x"
            await asyncio.sleep(1000)
    assert place.auths == []


@pytest.mark.parametrize("place", [{"socket_timeout": None}], indirect=True)
async def test_what_ended_because_its_token_did_says_so(place: Place):
    place.peer.script["BLPOP"] = lambda *_: HANG
    popping = asyncio.create_task(place.client.blpop(["list"], timeout=0))
    await asyncio.sleep(HOUR)
    place.peer.cut()
    with pytest.raises(ConnectionLostError, match=r"expired at .* UTC: a newer one is sent with"):
        await popping
    assert place.auths == []


# ------------------------------------------------------------------------------- the sign-in


@pytest.mark.parametrize("how", ["cancelled", "late", "cut", "refused"])
async def test_a_failed_sign_in_leaves_no_connection_and_no_secret(place: Place, how: str):
    steps = {"cancelled": HANG, "late": HANG, "cut": CUT, "refused": WRONGPASS}
    place.peer.script["HELLO"] = [steps[how]]
    task = asyncio.create_task(place.client.ping())
    await asyncio.sleep(1)
    if how == "cancelled":
        task.cancel()
    kinds = {
        "cancelled": asyncio.CancelledError,
        "late": ConnectTimeoutError,
        "cut": redis_exceptions.ConnectionError,
        "refused": SignInRefusedError,
    }
    with pytest.raises(kinds[how]) as caught:
        await task
    if how == "late":
        assert asyncio.get_running_loop().time() == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.1)
        assert "within 15 s" in str(caught.value)
    await asyncio.sleep(0)
    assert place.peer.open == []
    if how != "cancelled":
        out = io.StringIO()
        trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        print("".join(trace.format()), file=out)
        assert CANARY not in out.getvalue()
    place.peer.script["HELLO"] = place.hello
    assert await place.client.ping()
    assert place.pool.connection_kwargs.get("socket_timeout") != HANDSHAKE_TIMEOUT


@RESP2
@pytest.mark.parametrize("hook", ["password", "credential_provider"])
async def test_what_signs_in_too_is_refused_before_anything_is_sent(place: Place, hook: str):
    value: Any = "secret"
    if hook == "credential_provider":
        value = redis.UsernamePasswordCredentialProvider("a", "b")
    place.pool.connection_kwargs[hook] = value
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=f"{hook}= can't be combined"):
            await place.client.ping()
    await asyncio.sleep(0)
    assert place.peer.commands == []
    assert place.peer.open == []


@pytest.mark.parametrize("name", ["oid-1", "OID-1", None])
async def test_the_object_id_may_be_given_as_the_user_name(place: Place, name: str | None):
    place.pool.connection_kwargs["username"] = name
    assert await place.client.ping()


async def test_another_user_name_is_refused(place: Place):
    place.pool.connection_kwargs["username"] = "me@example.com"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="not the object ID"):
            await place.client.ping()
    assert place.peer.commands == []


@pytest.mark.parametrize("allowed", [False, True])
async def test_plaintext_to_another_machine(place: Place, allowed: bool):
    base = place.pool.connection_class

    class Far(base):  # type: ignore[misc, valid-type]
        async def _connect(self) -> None:
            await super()._connect()
            self._writer.transport._extra["peername"] = ("10.1.2.3", 6379)

    place.pool.connection_class = Far
    if allowed:
        place.pool.connection_kwargs |= entra_kwargs(place.source, allow_plaintext=True)
        assert await place.client.ping()
        return
    for _ in range(2):
        with pytest.raises(InsecureConnectionError, match=r"10\.1\.2\.3"):
            await place.client.ping()
    await asyncio.sleep(0)
    assert place.peer.commands == []
    assert place.peer.open == []


async def test_entra_redis_refuses_what_would_not_be_renewed(place: Place):
    kwargs = entra_kwargs(place.source)
    with pytest.raises(ConfigurationError, match="pass token_source= to EntraRedis"):
        EntraRedis(**kwargs)
    with pytest.raises(ConfigurationError, match="pass token_source= to EntraRedis"):
        EntraRedis.from_url("redis://localhost", **kwargs)
    with pytest.raises(ConfigurationError, match="pass token_source= to EntraRedis"):
        EntraRedis(connection_pool=place.pool)
    with pytest.raises(ConfigurationError, match="can't be combined"):
        EntraRedis(token_source=place.source, **kwargs)


@pytest.mark.parametrize("source", [None, "source", object()])
async def test_only_a_source_is_taken(source: Any):
    with pytest.raises(ConfigurationError, match="takes a TokenSource"):
        entra_kwargs(source)


# ------------------------------------------------------------------------------- the decisions


async def renewal(clock: Clock, **token: Any) -> tuple[Renewal, TokenSource]:
    source = source_of(Credential(clock, **token), clock, factory=True)
    held = await source.get()
    made = Renewal(source, name="connection")
    made.signed_in(held)
    return made, source


async def test_worn_means_nearly_expired_and_something_better_there():
    clock = Clock()
    made, source = await renewal(clock)
    assert not made.worn()
    await asyncio.sleep(HOUR - 20)
    assert source.current.version == 2
    assert not made.worn()
    await asyncio.sleep(11)
    assert made.worn()
    made.learned(source.current, redis_exceptions.AuthenticationError("no"))
    assert not made.worn()  # one that stands is better than one that can't be made
    assert made.ledger.state is ConnectionState.STALE
    made.learned(source.current, None)
    assert made.ledger.state is ConnectionState.AUTHENTICATED
    assert not made.worn()
    await source.aclose()


async def test_nothing_is_due_before_its_time_nor_once_the_newest_has_expired():
    clock = Clock()
    made, source = await renewal(clock)
    held = source.current
    assert made.due() is None
    while made.due() is None:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(1)
    newest = source.current
    assert newest.version == 2
    assert clock() <= reauth_deadline(held)
    clock.step(2 * HOUR)
    assert made.due() is None
    clock.step(-2 * HOUR)
    assert made.due() is newest
    await source.aclose()


async def test_connections_do_not_arrive_together_and_all_arrive_in_time():
    clock = Clock()
    first, source = await renewal(clock)
    held = source.current
    waiting = {first}
    for _ in range(200):
        another = Renewal(source, name="connection")
        another.signed_in(held)
        waiting.add(another)
    times: list[float] = []
    while waiting:
        due = {each for each in waiting if each.due() is not None}
        waiting -= due
        times += [clock()] * len(due)
        await asyncio.sleep(5)
    newest = source.current
    # Half of the time that is left to the deadline is theirs, the other half the server's.
    half = (reauth_deadline(held) - newest.first_seen) / 2
    assert max(times) <= newest.first_seen + half + 5
    assert max(times) - min(times) > 0.8 * half
    await source.aclose()


async def test_what_ended_early_ended_for_another_reason():
    clock = Clock()
    made, source = await renewal(clock)
    lost = redis_exceptions.ConnectionError("Connection closed by server.")
    assert made.ended(lost, Traffic()) is None
    clock.step(HOUR)
    assert isinstance(made.ended(lost, Traffic()), ConnectionLostError)
    refused = redis_exceptions.AuthenticationError("no")
    assert made.ended(refused, Traffic()) is None
    await source.aclose()
