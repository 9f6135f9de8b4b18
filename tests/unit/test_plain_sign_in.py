"""How a plain client's connection is signed in, and when its token is renewed: the decisions."""

from __future__ import annotations

import asyncio
import io
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from support.plain_place import HOUR, RESP2, WRONGPASS, Place
from support.scripted_peer import CUT, HANG
from support.token_fakes import CANARY, Clock, Credential, source_of

from aioentra_redis import (
    AuthTrigger,
    ConfigurationError,
    ConnectionLostError,
    ConnectionState,
    ConnectTimeoutError,
    EntraRedis,
    Event,
    InsecureConnectionError,
    Reauthenticated,
    ReauthenticationFailed,
    SignInRefusedError,
    TokenSource,
    entra_kwargs,
)
from aioentra_redis._redis_py._plain import HANDSHAKE_TIMEOUT
from aioentra_redis._renewal import Renewal
from aioentra_redis._schedule import reauth_deadline
from aioentra_redis._traffic import Traffic

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made = Place(**getattr(request, "param", {}))
    yield made
    await made.close()


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
    made = Renewal(source, name="connection", host="peer:1")
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


async def test_what_becomes_of_an_auth_is_told_by_the_source():
    clock = Clock()
    made, source = await renewal(clock)
    events: list[Event] = []
    source.listen(events.append)
    while made.due() is None:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(1)
    await asyncio.sleep(0.25)
    error = redis_exceptions.ResponseError("busy")
    made.learned(source.current, error)
    assert made.due() is None
    await asyncio.sleep(1)
    assert made.due() is source.current
    made.learned(source.current, None)
    assert [each for each in events if hasattr(each, "trigger")] == [
        ReauthenticationFailed("connection", "peer:1", 2, error, AuthTrigger.RENEWAL),
        Reauthenticated("connection", "peer:1", 2, 0.0, AuthTrigger.PROBE),
    ]
    await source.aclose()


async def test_an_auth_past_its_deadline_goes_with_a_command():
    clock = Clock()
    made, source = await renewal(clock)
    events: list[Event] = []
    source.listen(events.append)
    await asyncio.sleep(HOUR - 100)  # nobody has used the connection
    assert made.due() is source.current
    await asyncio.sleep(0.25)
    made.learned(source.current, None)
    (event,) = [each for each in events if isinstance(each, Reauthenticated)]
    assert event == Reauthenticated("connection", "peer:1", 2, 0.25, AuthTrigger.COMMAND)
    assert made.ledger.last_auth_latency == 0.25
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
        another = Renewal(source, name="connection", host="peer:1")
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
