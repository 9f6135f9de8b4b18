"""Blocking commands: where their timeout is, and waits in slices across rotations; virtual time."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as redis_exceptions
from support.pooled import LIFE, Place
from support.scripted_peer import CUT, HANG, OK, bulk

from aioentra_redis import ConnectionState, Reauthenticated, _schedule
from aioentra_redis._blocking import wait_of, wait_on
from aioentra_redis._multiplex import _reauth
from aioentra_redis._schedule import reauth_deadline, wait_slice
from aioentra_redis.errors import ConnectError, MaybeExecutedError, TokenExpiredError

NULL = b"_\r\n"


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def place():
    made = Place()
    yield made  # the source starts with the first connection, in virtual time
    await made.close()


@pytest.mark.parametrize(
    ("words", "position", "seconds"),
    [
        (("BLPOP", "a", "b", 1.5), 3, 1.5),
        ((b"brpop", b"a", b"0"), 2, 0),
        (("BRPOPLPUSH", "a", "b", "2"), 3, 2),
        (("BLMOVE", "a", "b", "LEFT", "RIGHT", 3), 5, 3),
        (("BZPOPMIN", "a", 1), 2, 1),
        (("BZPOPMAX", "a", 1), 2, 1),
        (("BLMPOP", 4, 1, "a", "LEFT"), 1, 4),
        (("BZMPOP", "0.5", 1, "a", "MIN"), 1, 0.5),
        (("BLMOVEM", "a", "b", "LEFT", "RIGHT", 2, "COUNT", 3), 5, 2),
        (("XREAD", "COUNT", 3, "BLOCK", 1500, "STREAMS", "BLOCK", "$"), 4, 1.5),
        (("XREADGROUP", "GROUP", "BLOCK", "STREAMS", b"block", 0, "STREAMS", "s", ">"), 5, 0),
        (("TS.READ", "BLOCK", 10, "STREAMS", "s", 0), 2, 0.01),
        (("XREAD BLOCK", 10, "STREAMS", "s", 0), 2, 0.01),
    ],
)
def test_where_the_timeout_is(words: tuple[Any, ...], position: int, seconds: float):
    wait = wait_of(words)
    assert wait is not None
    assert (wait.position, wait.seconds) == (position, seconds)


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "k"),
        ("XREAD", "STREAMS", "BLOCK", "5"),
        ("XREADGROUP", "GROUP", "BLOCK", "5", "STREAMS", "s", ">"),
        ("XREAD", "BLOCK"),
        ("BLPOP",),
        ("BLMPOP",),
        ("BLPOP", "k", -1),
        ("BLPOP", "k", "soon"),
        ("BLPOP", "k", "nan"),
        ("BLPOP", "k", "inf"),
        ("BLPOP", "k", True),
        ("BLPOP", "k", None),
        ("XREAD", "BLOCK", "1.5", "STREAMS", "s", "$"),
    ],
)
def test_what_is_no_wait_is_left_to_the_server(words: tuple[Any, ...]):
    assert wait_of(words) is None


@given(st.floats(0, 1e6))
def test_a_timeout_is_never_rounded_to_for_ever(seconds: float):
    for words in (("BLPOP", "k", "1"), ("XREAD", "BLOCK", "1", "STREAMS", "s", "0")):
        wait = wait_of(words)
        assert wait is not None
        timeout = wait.for_seconds(seconds)[wait.position]
        assert float(timeout) > 0
        assert abs(float(timeout) / wait.unit - seconds) <= 0.001


class Life:
    refresh_on = issued_on = None
    first_seen = 0.0

    def __init__(self, lifetime: float) -> None:
        self.lifetime = self.expires_on = lifetime


@given(life=st.floats(1, 90_000), share=st.floats(0, 1), start=st.floats(0, 1))
def test_slices_end_before_the_deadline_and_then_before_the_expiry(
    life: float, share: float, start: float
):
    token = Life(life)
    at, slices = start * life, 0
    while (piece := wait_slice(token, at, share)) > 0:
        before, at, slices = at, at + piece, slices + 1
        assert at < token.expires_on
        assert before >= reauth_deadline(token) - 0.03 or at <= reauth_deadline(token) + 1e-6
    assert at > token.expires_on - max(1.1, 0.1 * life)
    assert slices < 60


@given(life=st.floats(1, 90_000), share=st.floats(0, 1))
def test_an_auth_behind_a_wait_has_time_to_be_answered_by_the_deadline(life: float, share: float):
    token = Life(life)
    renewal = life - min(300, life / 2)
    window = reauth_deadline(token) - renewal
    end = renewal + wait_slice(token, renewal, share)
    assert renewal < end <= reauth_deadline(token) - 0.09 * window


# -------------------------------------------------------------------------------------- waits


@pytest.mark.looptime
async def test_a_wait_goes_on_across_rotations(place: Place):
    place.peer.script["BLPOP"] = lambda *words: [float(words[-1]), NULL]
    client = place.client()
    started = now()
    assert await client.blpop("k", 200) is None
    assert now() - started == pytest.approx(200, abs=0.1)
    names = [words[0] for words in place.peer.commands if words[0] in (b"BLPOP", b"AUTH")]
    assert names[0] == b"BLPOP"
    assert 3 <= names.count(b"AUTH") <= 4
    assert names.count(b"BLPOP") <= 2 * names.count(b"AUTH") + 1
    assert place.peer.dials == 1


@pytest.mark.looptime
async def test_an_element_reaches_its_caller_though_the_next_auth_is_refused(
    place: Place,
):
    pair = b"*2\r\n" + bulk("k") + bulk("element")
    place.peer.script.update(
        BLPOP=lambda *words: [float(words[-1]), pair],
        AUTH=lambda *_: b"-WRONGPASS no\r\n",
    )
    client = place.client()
    assert await client.blpop("k", 40) in ((b"k", b"element"), [b"k", b"element"])
    await asyncio.sleep(30)


@pytest.mark.looptime
async def test_a_failed_release_loses_nothing(place: Place):
    place.peer.script["BLPOP"] = [b"*2\r\n" + bulk("k") + bulk("element")]
    client = place.client()
    pool: Any = client.connection_pool
    release = pool.release

    async def broken(connection: Any) -> None:
        await release(connection)
        raise redis_exceptions.TimeoutError("no")

    pool.release = broken
    assert await client.blpop("k", 1) in ((b"k", b"element"), [b"k", b"element"])
    pool.release = release


@pytest.mark.looptime
async def test_without_a_newer_token_it_ends_before_the_expiry(place: Place):
    def once(call: int) -> Any:
        return place.credential.issue(life=LIFE) if call == 1 else ConnectionError("down")

    place.credential.answer = once
    place.peer.script["BLPOP"] = lambda *words: [float(words[-1]), NULL]
    client = place.client()
    with pytest.raises(TokenExpiredError, match="Nothing was popped"):
        await client.blpop("k", 0)
    assert LIFE - 3 < now() < LIFE


@pytest.mark.looptime
@pytest.mark.parametrize("timeout", [30, 0])
async def test_without_tokens_any_wait_is_patient(place: Place, timeout: float):
    place.peer.script["BLPOP"] = [[30.0, NULL]]
    client = place.client(token_source=None)
    assert await client.blpop("k", timeout) is None
    assert [words[-1] for words in place.peer.seen("BLPOP")] == [b"%d" % timeout]


@pytest.mark.looptime
async def test_a_server_that_is_late_is_not_waited_for_for_ever(place: Place):
    place.peer.script["BLPOP"] = [HANG]
    client = place.client(place.pool(socket_timeout=3))
    with pytest.raises(MaybeExecutedError, match="may be lost"):
        await client.blpop("k", 10)
    assert now() == pytest.approx(13, abs=0.1)


@pytest.mark.looptime
async def test_a_pop_whose_connection_ends_is_not_repeated(place: Place):
    place.peer.script["BLPOP"] = [[5.0, CUT]]
    client = place.client()
    with pytest.raises(MaybeExecutedError, match="BLPOP"):
        await client.blpop("k", 10)
    assert len(place.peer.seen("BLPOP")) == 1


@pytest.mark.looptime
async def test_an_unreadable_reply_is_a_loss_like_any_other(place: Place):
    place.peer.script.update(BLPOP=[[5.0, b"?\r\n"]], XREAD=[[5.0, b"?\r\n"], NULL])
    client = place.client()
    with pytest.raises(MaybeExecutedError, match="may be lost"):
        await client.blpop("k", 10)
    await asyncio.sleep(0)
    assert place.peer.open == []
    await client.xread({"s": 0}, block=10_000)  # which changes nothing, and so is sent again
    assert [len(place.peer.seen(each)) for each in ("BLPOP", "XREAD")] == [1, 2]


@pytest.mark.looptime
async def test_cancelling_closes_the_connection(place: Place):
    place.peer.script["BLPOP"] = [HANG]
    client = place.client()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await client.blpop("k", 0)
    await asyncio.sleep(0)
    assert place.peer.open == []
    place.peer.script["BLPOP"] = [NULL]
    assert await client.blpop("k", 1) is None
    assert place.peer.dials == 2


@pytest.mark.looptime
async def test_what_the_server_finds_wrong_it_says_itself(place: Place):
    place.peer.script["BLPOP"] = [b"-ERR timeout is negative\r\n"]
    client = place.client()
    with pytest.raises(redis_exceptions.ResponseError, match="negative"):
        await client.blpop("k", -1)


@pytest.mark.looptime
async def test_dollar_is_pinned_once(place: Place):
    entry = b"*1\r\n*2\r\n" + bulk("5-1") + b"*2\r\n" + bulk("f") + bulk("v")
    last = {b"a": entry, b"c": b"*0\r\n", b"d": b"-NOPERM no\r\n"}
    place.peer.script.update(
        XREVRANGE=lambda *words: last[words[1]],
        XREAD=lambda *words: [float(words[2]) / 1000, NULL],
    )
    client = place.client()
    await client.xread({"a": "$", "b": "7-0", "c": "$", "d": "$"}, block=120_000)
    assert len(place.peer.seen("XREVRANGE")) == 3
    reads = place.peer.seen("XREAD")
    assert len(reads) > 1
    assert {tuple(words[3:]) for words in reads} == {
        (b"STREAMS", b"a", b"b", b"c", b"d", b"5-1", b"7-0", b"0-0", b"$")
    }
    await client.xread({"a": "$"}, block=1)
    assert len(place.peer.seen("XREVRANGE")) == 3


@pytest.mark.looptime
@pytest.mark.parametrize("timeout", [200, 0])
async def test_who_is_unblocked_gets_nothing_and_waits_no_longer(place: Place, timeout: float):
    place.peer.script["BLPOP"] = [[3.0, NULL]]
    client = place.client()
    started = now()
    assert await client.blpop("k", timeout) is None
    assert now() - started == pytest.approx(3, abs=0.1)


@pytest.mark.looptime
async def test_a_wait_outlasts_an_outage_as_any_command_does(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    place.peer.script["BLPOP"] = [b"*2\r\n" + bulk("k") + bulk("element")]
    client = place.client()
    await place.idle(client, 1)
    await client.get("k")
    attempts = 0

    async def refused(_: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionRefusedError(111, "Connect call failed")

    with monkeypatch.context() as down:
        down.setattr(client.connection_pool.connection_class.__mro__[2], "_connect", refused)
        place.peer.cut()
        popped = asyncio.create_task(client.blpop("k", 5))
        await asyncio.sleep(3)
        assert not popped.done()
    assert await popped in ((b"k", b"element"), [b"k", b"element"])
    assert attempts < 12


@pytest.mark.looptime
async def test_a_wait_outlasts_an_outage_that_is_over_before_it_looks(place: Place):
    """The connection that all share is there again at once, but it is another one."""
    client = place.client()
    await client.get("k")

    def all_are_cut(*_: bytes) -> Any:
        del place.peer.script["HELLO"]
        place.peer.cut()
        return CUT

    place.peer.script.update(HELLO=all_are_cut, BLPOP=[b"*2\r\n" + bulk("k") + bulk("element")])
    assert list(await client.blpop("k", 5)) == [b"k", b"element"]
    assert place.peer.dials == 4


@pytest.mark.looptime
async def test_a_wait_does_not_insist_where_the_server_is_there(place: Place):
    """One that lets no more connections in, say: nothing was lost, so nothing is waited for."""
    client = place.client()
    await client.get("k")
    place.peer.script["HELLO"] = lambda *_: CUT
    started = now()
    with pytest.raises(ConnectError, match="handshake"):
        await client.blpop("k", 5)
    assert now() - started < 1


@pytest.mark.looptime
async def test_what_keeps_a_wait_from_connecting_is_explained(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    client = place.client()
    await client.get("k")

    async def distrusts(_: Any) -> None:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_code, error.verify_message = 10, "certificate has expired"
        raise error

    monkeypatch.setattr(client.connection_pool.connection_class.__mro__[2], "_connect", distrusts)
    started = now()
    with pytest.raises(ConnectError, match="certificate of localhost") as caught:
        await client.blpop("k", 5)
    assert caught.value.stage == "tls"
    assert now() - started < 1


@pytest.mark.looptime
async def test_a_wait_outlasts_no_longer_than_the_recovery_timeout(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    client = place.client(recovery_timeout=10)
    await client.get("k")

    async def refused(_: Any) -> None:
        raise ConnectionRefusedError(111, "Connect call failed")

    with monkeypatch.context() as down:
        down.setattr(client.connection_pool.connection_class.__mro__[2], "_connect", refused)
        place.peer.cut()
        started = now()
        with pytest.raises(redis_exceptions.ConnectionError, match="recovery_timeout"):
            await client.blpop("k", 5)
        assert now() - started == pytest.approx(10, abs=0.5)


@pytest.mark.looptime
@pytest.mark.parametrize("command", ["BLPOP", "XREAD"])
async def test_a_wait_that_was_not_executed_or_only_reads_is_sent_again(place: Place, command: str):
    lost = [CUT] if command == "XREAD" else [b"-LOADING Redis is loading\r\n"]
    place.peer.script[command] = [lost, lost, NULL]
    client = place.client()
    if command == "XREAD":
        await client.xread({"s": 0}, block=5000)
    else:
        await client.blpop("k", 5)
    assert len(place.peer.seen(command)) == 3


@pytest.mark.looptime
async def test_a_pool_without_room_says_so_at_once(place: Place):
    client = place.client(place.pool(max_connections=1))
    (connection,) = await place.leased(client, 1)
    started = now()
    with pytest.raises(redis_exceptions.ConnectionError, match="Too many connections"):
        await client.blpop("k", 5)
    assert now() - started < 0.05
    await client.connection_pool.release(connection)


@pytest.mark.looptime
async def test_between_multi_and_exec_a_wait_is_one_word_among_others(place: Place):
    place.peer.script.update(
        MULTI=lambda *_: OK,
        XREAD=lambda *_: b"+QUEUED\r\n",
        BLPOP=lambda *_: b"+QUEUED\r\n",
        EXEC=lambda *_: b"*2\r\n_\r\n_\r\n",
    )
    async with place.client().client() as one:
        one.response_callbacks["XREAD"] = lambda reply, **_: reply  # redis-py's wants entries
        await one.execute_command("MULTI")
        assert await one.execute_command("XREAD", "BLOCK", 0, "STREAMS", "s", "$") == b"QUEUED"
        assert await one.execute_command("BLPOP", "k", 900) == b"QUEUED"
        assert await one.execute_command("EXEC") == [None, None]
    names = [words[0] for words in place.peer.commands[-4:]]
    assert names == [b"MULTI", b"XREAD", b"BLPOP", b"EXEC"]
    assert place.peer.seen("BLPOP")[0][-1] == b"900"


async def test_a_wait_that_is_not_cut_goes_out_in_the_users_own_words():
    sent: list[Any] = []

    class Connection:  # all that a pool of the user's own making must lend
        async def send_command(self, *words: Any) -> None:
            sent.append(words)

        async def read_response(self, **_: Any) -> None:
            return None

    wait = wait_of(("BLPOP", "k", 5))
    assert wait is not None
    await wait_on(Connection(), wait, {})
    assert sent == [("BLPOP", "k", 5)]  # in real time, of which a little has passed


@pytest.mark.looptime
async def test_after_a_suspension_the_newer_token_goes_in_front(place: Place, monkeypatch):
    monkeypatch.setattr(_schedule, "_random", lambda: 1.0)  # AUTH would come at 60 s
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 10.0)
    place.peer.script["BLPOP"] = [b"*2\r\n" + bulk("k") + bulk("element")]
    client = place.client()
    async with client.client() as owner:
        await owner.echo("a")
        await asyncio.sleep(51)
        assert place.source.current.version == 2
        assert place.peer.seen("AUTH") == []
        place.clock.step(48.5)  # to just before the expiry of the token that is held
        assert await owner.blpop("k", 1) in ((b"k", b"element"), [b"k", b"element"])
        (row,) = [each for each in client.auth_status() if each.connection.startswith("dedicated")]
        assert (row.token_version, row.reauthentications) == (2, 1)
        await asyncio.sleep(15)  # the task's own turn comes and finds it done
        assert len(place.peer.seen("AUTH")) == 1
    assert len(place.of(Reauthenticated)) == 1


@pytest.mark.looptime
async def test_a_refusal_in_front_of_a_command_is_tried_again_by_the_task_only(
    place: Place, monkeypatch
):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 10.0)
    place.peer.script["AUTH"] = [b"-WRONGPASS invalid username-password pair\r\n"] * 9
    client = place.client()
    async with client.client() as owner:
        await owner.echo("a")
        await asyncio.sleep(51)
        place.clock.step(25)  # past the deadline of the token that is held
        for _ in range(5):
            assert await owner.echo("b") == b"b"
        assert len(place.peer.seen("AUTH")) == 1
        await asyncio.sleep(9.5)
        assert len(place.peer.seen("AUTH")) == 2
        assert [row.state for row in client.auth_status()] == [ConnectionState.STALE]
