"""The handover of a RESP2 subscription, with losses, refusals and silence at each of its points."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import NoPermissionError
from support.pubsub_peer import NOPERM, PubSubPeer
from support.scripted_peer import HANG, Wire, dialed_over

from aioentra_redis._multiplex import _subscriber_session
from aioentra_redis._multiplex._handover import Cut, hand_over
from aioentra_redis._multiplex._subscriber import MARKER_PREFIX, Backlog
from aioentra_redis._multiplex._subscriber_session import Inbox, SubscriberSession
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.looptime

NAMES = (("SUBSCRIBE", "a"), ("PSUBSCRIBE", "p*"), ("SSUBSCRIBE", "s", "t"))


class Stage:
    """One server, the connection that delivers, and the one that is to take over.

    ``steps`` counts what the server was asked during the handover; ``at[n]`` is done before it
    answers the n-th of these, ``publishing`` before the marker is out.
    """

    def __init__(self) -> None:
        self.peer = PubSubPeer(2)
        self.inbox = Inbox()
        self.old_wire, self.new_wire = Wire(self.peer), Wire(self.peer)
        self.old = self.session(self.old_wire, self.inbox)
        self.new = self.session(self.new_wire, Backlog())
        self.at: dict[int, Any] = {}
        self.asked: list[bytes] = []
        self.number = 0
        self.publishing: Any = None
        self.refuses_publish = False

    def session(self, wire: Wire, sink: Backlog) -> SubscriberSession:
        return SubscriberSession(dialed_over(wire, protocol=2), sink, lambda *_: None)

    async def subscribe(self) -> None:
        for words in NAMES:
            self.old.send(words)
        await turns()
        while self.inbox:
            self.inbox.take()
        steps_for = self.peer.steps_for

        def counted(words: list[bytes], connection: Any) -> list[Any]:
            side = b"old " if connection is self.old_wire.connection else b"new "
            self.asked.append(side + words[0].lower())
            action = self.at.get(len(self.asked))
            steps = action() if action is not None else None
            self.message()  # between any two of its steps something is published
            return steps_for(words, connection) if steps is None else steps

        self.peer.steps_for = counted  # type: ignore[method-assign]

    def message(self) -> None:
        self.number += 1
        data = b"%d" % self.number
        self.peer.publish(b"a", data)
        self.peer.publish(b"px", data)
        self.peer.publish(b"s", data, sharded=True)

    async def publish(self, marker: bytes) -> None:
        await asyncio.sleep(0.01)
        if self.publishing is not None:
            self.publishing()
        if self.refuses_publish:
            raise NoPermissionError("this user has no permissions to run the 'publish' command")
        self.message()
        self.peer.publish(marker, b"")
        self.message()

    async def hand_over(self) -> Cut:
        self.message()
        cut = await hand_over(self.old, self.new, self.publish)
        self.message()
        await asyncio.sleep(0.1)
        return cut

    def received(self) -> list[tuple[bytes, int]]:
        """What the reader has got: channel and number, in order."""
        items = []
        while self.inbox:
            item = self.inbox.take()
            items.append((item[-2], int(item[-1])))
        return items

    def of(self, received: list[tuple[bytes, int]], channel: bytes) -> list[int]:
        return [number for name, number in received if name == channel]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def stage():
    it = Stage()
    await it.subscribe()
    yield it
    it.old.close()
    it.new.close()
    await asyncio.sleep(0.01)


def each_once(stage: Stage, after: int = 0) -> None:
    received = stage.received()
    everything = list(range(after + 1, stage.number + 1))
    for channel in (b"a", b"px", b"s"):
        assert stage.of(received, channel) == everything, channel


async def test_every_message_arrives_once_and_in_order(stage):
    assert await stage.hand_over() == Cut(doubt=None, missing=False)
    stage.old.close()
    stage.message()
    await turns()
    each_once(stage)
    assert stage.asked == [
        b"old subscribe",  # the marker
        b"new subscribe",
        b"new psubscribe",
        b"new ssubscribe",
        b"new ssubscribe",
        b"new subscribe",  # the marker
        b"new unsubscribe",
    ]
    assert stage.new.subscriptions == {b"": {b"a"}, b"p": {b"p*"}, b"s": {b"s", b"t"}}
    assert stage.new.in_flight == 0


async def test_a_pattern_for_everything_sees_no_marker(stage):
    stage.old.send(("PSUBSCRIBE", "*"))
    await turns()
    stage.inbox.clear()
    await stage.hand_over()
    assert not [name for name, _ in stage.received() if name.startswith(MARKER_PREFIX)]


async def test_one_after_the_other(stage):
    sessions = [stage.old, stage.new]
    for _ in range(20):
        assert (await hand_over(sessions[-2], sessions[-1], stage.publish)).doubt is None
        sessions[-2].close()
        sessions.append(stage.session(Wire(stage.peer), Backlog()))
    stage.message()
    await turns()
    each_once(stage)
    for session in sessions:
        session.close()
    await turns()


# -- no marker -------------------------------------------------------------------------------------


def complete_and_in_order(stage: Stage) -> None:
    """Nothing missing, and what came twice came in its order both times."""
    received = stage.received()
    for channel in (b"a", b"px", b"s"):
        numbers = stage.of(received, channel)
        assert set(numbers) == set(range(1, stage.number + 1)), (channel, numbers)
        twice = len(numbers) - len(set(numbers))
        assert twice < stage.number
        falls = [
            place for place, number in enumerate(numbers[1:], 1) if number <= numbers[place - 1]
        ]
        assert len(falls) <= 1, numbers  # where the new one begins


async def test_a_marker_that_may_not_be_published(stage):
    stage.refuses_publish = True
    cut = await stage.hand_over()
    assert "permissions" in cut.doubt
    assert not cut.missing
    stage.old.close()
    complete_and_in_order(stage)


@pytest.mark.parametrize("step", [1, 6], ids=["on the old one", "on the new one"])
async def test_a_marker_that_may_not_be_subscribed_to(stage, step):
    stage.at[step] = lambda: [NOPERM]
    cut = await stage.hand_over()
    assert "No permissions" in cut.doubt
    assert not cut.missing
    stage.old.close()
    complete_and_in_order(stage)
    assert stage.new.subscriptions[b""] == {b"a"}


async def test_a_marker_that_gets_lost(stage):
    stage.peer.publish = _without_markers(stage.peer.publish)
    cut = await stage.hand_over()
    assert cut == Cut("the marker did not arrive within 5 s", missing=False)
    stage.old.close()
    complete_and_in_order(stage)


def _without_markers(publish: Any) -> Any:
    def lossy(channel: bytes, data: bytes = b"x", **options: Any) -> int:
        return 0 if channel.startswith(MARKER_PREFIX) else publish(channel, data, **options)

    return lossy


@pytest.mark.parametrize("deaf", ["old", "new"])
async def test_a_marker_that_reaches_one_of_them(stage, deaf):
    """As where the two connections lead to different servers."""
    send = getattr(stage, f"{deaf}_wire").connection.send

    def without_marker(data: bytes) -> None:
        if b"message" not in data or MARKER_PREFIX not in data:
            send(data)

    getattr(stage, f"{deaf}_wire").connection.send = without_marker
    cut = await stage.hand_over()
    assert cut == Cut("the marker did not arrive within 5 s", missing=False)
    stage.old.close()
    complete_and_in_order(stage)


# -- the old one stays -----------------------------------------------------------------------------


async def stays(stage: Stage, error: type[BaseException]) -> None:
    with pytest.raises(error):
        await stage.hand_over()
    stage.message()
    await asyncio.sleep(0.1)
    each_once(stage)
    assert not stage.old.closed
    assert stage.old.subscriptions[b""] == {b"a"}
    assert stage.old.in_flight == 0
    # and the next attempt succeeds
    stage.new.close()
    stage.new = stage.session(Wire(stage.peer), Backlog())
    stage.at, stage.publishing, before = {}, None, stage.number
    assert (await stage.hand_over()).doubt is None
    each_once(stage, after=before)


@pytest.mark.parametrize("step", range(1, 7))
async def test_the_new_one_is_lost_at_each_step(stage, step):
    stage.at[step] = lambda: stage.new_wire.connection.cut()
    await stays(stage, ConnectionLostError)


async def test_the_new_one_is_lost_before_the_marker_is_out(stage):
    stage.publishing = stage.new_wire.connection.cut
    await stays(stage, ConnectionLostError)


async def test_the_new_one_is_lost_when_the_old_one_has_had_the_marker(stage):
    send = stage.old_wire.connection.send

    def cut_behind_marker(data: bytes) -> None:
        send(data)
        if b"message" in data and MARKER_PREFIX in data:
            stage.new_wire.connection.cut()

    stage.old_wire.connection.send = cut_behind_marker
    await stays(stage, ConnectionLostError)


@pytest.mark.parametrize("step", [2, 3, 4, 5])
async def test_the_new_one_may_not_subscribe_to_all_of_it(stage, step):
    stage.at[step] = lambda: [NOPERM]
    await stays(stage, NoPermissionError)


async def test_a_silent_new_one(stage):
    stage.at[3] = lambda: [HANG]
    await stays(stage, TimeoutError)


async def test_a_silent_old_one_that_lives(stage):
    """It may have changes in flight; and may yet say what it was subscribed to."""
    stage.at[1] = lambda: [30.0, NOPERM]
    with pytest.raises(TimeoutError):
        await stage.hand_over()
    await asyncio.sleep(30)
    assert not stage.old.closed
    assert stage.old.in_flight == 0
    each_once(stage)


async def test_an_old_one_that_falls_silent_is_not_let_go(stage):
    """What it has not delivered yet may be nowhere else."""
    stage.refuses_publish = True
    stage.at[7] = lambda: [HANG]  # the PING that is to tell that all is delivered
    with pytest.raises(TimeoutError):
        await stage.hand_over()
    assert stage.asked[6] == b"old ping"
    stage.peer.script["PING"] = None
    stage.old_wire.connection.go_on()
    await turns()
    assert not stage.old.closed
    each_once(stage)


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.005, 0.0105, 0.02])
async def test_cancelled_at_any_moment(stage, moment):
    task = asyncio.ensure_future(hand_over(stage.old, stage.new, stage.publish))
    await asyncio.sleep(moment)
    if task.done():
        stage.old.close()
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stage.new.close()
    stage.message()
    await asyncio.sleep(0.1)
    each_once(stage)


async def test_cancelled_at_each_turn_of_the_loop(stage):
    for count in range(40):
        new = stage.session(Wire(stage.peer), Backlog())
        task = asyncio.ensure_future(hand_over(stage.old, new, stage.publish))
        for _ in range(count):
            await asyncio.sleep(0)
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        if isinstance(done[0], Cut):
            stage.old.close()
            stage.old = new
        else:
            new.close()
        stage.message()
        await turns()
    each_once(stage)


# -- the new one takes over all the same -----------------------------------------------------------


async def test_the_old_one_is_lost_with_changes_in_flight(stage):
    """Then nobody knows what it was subscribed to: redis-py subscribes anew."""
    stage.at[1] = lambda: stage.old_wire.connection.cut()
    with pytest.raises(ConnectionLostError):
        await stage.hand_over()
    assert stage.old.closed


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6])
async def test_the_old_one_is_lost_while_the_new_one_subscribes(stage, step):
    stage.at[step] = lambda: stage.old_wire.connection.cut()
    cut = await stage.hand_over()
    assert cut.missing
    assert cut.doubt is not None
    after = stage.number
    stage.message()
    await turns()
    received = stage.received()
    assert stage.of(received, b"a")[-1] == stage.of(received, b"s")[-1] == after + 1
    assert stage.new.subscriptions == {b"": {b"a"}, b"p": {b"p*"}, b"s": {b"s", b"t"}}


async def test_the_old_one_is_lost_before_the_marker_is_out(stage):
    stage.publishing = stage.old_wire.connection.cut
    cut = await stage.hand_over()
    assert cut.missing
    complete_and_in_order(stage)  # the new one was subscribed: in fact nothing is missing


async def test_the_old_one_is_lost_when_the_new_one_has_had_the_marker(stage):
    send = stage.old_wire.connection.send

    def cut_at_marker(data: bytes) -> None:
        if b"message" in data and MARKER_PREFIX in data:
            stage.old_wire.connection.cut()
        else:
            send(data)

    stage.old_wire.connection.send = cut_at_marker
    cut = await stage.hand_over()
    assert cut.missing
    complete_and_in_order(stage)


async def test_both_are_lost(stage):
    stage.publishing = stage.peer.cut
    with pytest.raises(ConnectionLostError):
        await stage.hand_over()


# -- a slow reader ---------------------------------------------------------------------------------


async def test_a_reader_that_does_not_read_holds_nothing_up(stage, monkeypatch):
    monkeypatch.setattr(_subscriber_session, "HIGH_WATER", 1000)
    monkeypatch.setattr(_subscriber_session, "LOW_WATER", 500)
    for _ in range(20):
        stage.message()
    await turns()
    assert stage.old.held_up
    assert (await stage.hand_over()).doubt is None
    stage.old.close()
    stage.message()
    await turns()
    received = []
    for _ in range(1000):
        if stage.inbox:
            item = stage.inbox.take()
            received.append((item[-2], int(item[-1])))
        stage.new.regulate()
        await asyncio.sleep(0)
    assert stage.of(received, b"a") == list(range(1, stage.number + 1))


async def test_a_reader_too_far_behind_puts_it_off(stage, monkeypatch):
    monkeypatch.setattr(_subscriber_session, "HIGH_WATER", 1000)
    monkeypatch.setattr(_subscriber_session, "READ_AHEAD", 2000)
    for _ in range(200):
        stage.message()
    await turns()
    with pytest.raises(TimeoutError):
        await stage.hand_over()
    assert not stage.old.closed
    received = []
    while stage.inbox or stage.old.held_up:
        received += stage.received()
        stage.old.regulate()
        await turns(2)
    assert stage.of(received, b"a") == list(range(1, stage.number + 1))
