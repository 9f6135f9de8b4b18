"""Events: the hub, and the streams that keep events for those who read them in a loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest
from support.place import Place
from support.pooled import Place as TokenPlace
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import (
    AcquisitionEnded,
    AuthTrigger,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    EventsDropped,
    EventStream,
    Reauthenticated,
    TokenPublished,
    TokenState,
    TokenStateChanged,
)
from aioentra_redis import _event_streams as streams
from aioentra_redis._event_streams import EventStreams
from aioentra_redis._events import EventHub
from aioentra_redis._multiplex import _connection

pytestmark = pytest.mark.looptime


def event(number: int) -> ConnectionOpened:
    return ConnectionOpened(f"connection-{number}", "peer", number, 0.0)


def numbers(events: list[Event]) -> list[int]:
    return [each.token_version for each in events if isinstance(each, ConnectionOpened)]  # type: ignore[misc]


async def read(stream: EventStream) -> list[Event]:
    return [each async for each in stream]


# ---------------------------------------------------------------------------------------- the hub


def test_a_listener_that_raises_is_logged_and_disturbs_nobody(caplog: pytest.LogCaptureFixture):
    hub, seen = EventHub(), []

    def broken(_: Event) -> None:
        raise ValueError("mine")

    hub.listen(broken)
    hub.listen(seen.append)
    hub.emit(event(1))
    assert numbers(seen) == [1]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("aioentra_redis.events", logging.ERROR)
    assert record.exc_info is not None
    assert "ConnectionOpened" in record.getMessage()


async def test_a_callback_that_raises_harms_neither_source_nor_client(place: Place):
    def broken(_: Event) -> None:
        raise ValueError("mine")

    clock = Clock()
    source = source_of(Credential(clock), clock, on_event=broken)
    client = place.client(token_source=source, on_event=broken, allow_plaintext=True)
    async with source:
        assert await client.get("k") is None
        assert source.state is TokenState.FRESH


def test_a_listener_may_leave_while_it_is_called():
    hub, seen = EventHub(), []

    def once(each: Event) -> None:
        seen.append(each)
        stop()

    stop = hub.listen(once)
    hub.emit(event(1))
    hub.emit(event(2))
    stop()
    assert numbers(seen) == [1]


# ------------------------------------------------------------------------------------- the stream


async def test_events_come_in_order_and_to_every_stream():
    hub, group = EventHub(), EventStreams()
    one, other = group.open(hub), group.open(hub)
    for number in range(3):
        hub.emit(event(number))
    group.close()
    assert numbers(await read(one)) == [0, 1, 2]
    assert numbers(await read(other)) == [0, 1, 2]
    assert "closed, 0 unread" in repr(one)


async def test_a_stream_hears_what_follows_its_making_even_before_it_is_iterated():
    hub, group = EventHub(), EventStreams()
    hub.emit(event(0))
    stream = group.open(hub)
    hub.emit(event(1))
    assert numbers([await anext(stream)]) == [1]


async def test_a_waiting_reader_is_woken_by_an_event_and_by_the_end():
    hub, group = EventHub(), EventStreams()
    reading = asyncio.create_task(read(group.open(hub)))
    await asyncio.sleep(1)
    hub.emit(event(1))
    hub.emit(event(2))
    await asyncio.sleep(1)
    assert not reading.done()
    group.close()
    assert numbers(await reading) == [1, 2]
    assert await read(group.open(hub)) == []
    hub.emit(event(3))


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many(monkeypatch):
    monkeypatch.setattr(streams, "CAPACITY", 3)
    hub, group = EventHub(), EventStreams()
    stream = group.open(hub)
    for number in range(8):
        hub.emit(event(number))
    assert await anext(stream) == EventsDropped(5)
    assert numbers([await anext(stream)]) == [5]
    hub.emit(event(8))
    hub.emit(event(9))
    group.close()
    rest = await read(stream)
    assert rest[0] == EventsDropped(1)
    assert numbers(rest) == [7, 8, 9]
    assert stream.dropped == 6


async def test_a_dropped_stream_disappears():
    hub, group = EventHub(), EventStreams()
    stream: Any = group.open(hub)
    assert len(hub._listeners) == 1
    del stream
    gc.collect()
    assert hub._listeners == []
    assert group._refs == {}


async def test_leaving_the_loop_early_leaves_nothing_behind():
    hub, group = EventHub(), EventStreams()
    asyncio.get_running_loop().call_later(1, hub.emit, event(1))
    async for each in group.open(hub):
        assert numbers([each]) == [1]
        break
    del each
    gc.collect()
    assert hub._listeners == []


async def test_cancelling_a_wait_loses_nothing():
    hub, group = EventHub(), EventStreams()
    stream = group.open(hub)
    for number in range(3):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        hub.emit(event(number))  # it has been woken, and has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert numbers([await anext(stream)]) == [number]
    group.close()
    assert await read(stream) == []


async def test_two_tasks_may_not_wait_on_one_stream():
    hub, group = EventHub(), EventStreams()
    stream = group.open(hub)
    reading = asyncio.create_task(read(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(stream)
    stream.close()
    assert await reading == []


@pytest.mark.looptime(False)
async def test_a_stream_may_be_closed_from_another_thread():
    """As happens to those of a client that the garbage collector finds there."""
    hub, group = EventHub(), EventStreams()
    reading = asyncio.create_task(read(group.open(hub)))
    await asyncio.sleep(0.01)
    thread = threading.Thread(target=group.close)
    thread.start()
    assert await asyncio.wait_for(reading, 5) == []
    thread.join()


# ------------------------------------------------------------------------- sources and clients


@pytest.fixture
async def place(monkeypatch):
    made = Place()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


async def test_a_source_tells_its_life():
    clock = Clock()
    credential = Credential(clock, life=100)
    source = source_of(credential, clock, factory=True, name="mine")
    stream = source.events()
    async with source:
        await asyncio.sleep(55)
        credential.answer = lambda _: ConnectionError("down")
        await asyncio.sleep(55)
    events = await read(stream)
    outcomes = [each.outcome for each in events if isinstance(each, AcquisitionEnded)]
    assert outcomes[:3] == ["published", "published", "failed"]
    assert {each.source for each in events if isinstance(each, AcquisitionEnded)} == {"mine"}
    failed = [each for each in events if isinstance(each, AcquisitionEnded) and each.error]
    assert {each.outcome for each in failed} == {"failed"}
    assert len([each for each in events if isinstance(each, TokenPublished)]) == 2
    last = events[-1]
    assert isinstance(last, TokenStateChanged)
    assert last.new is TokenState.CLOSED
    assert await read(source.events()) == []


async def test_an_attempt_tells_how_long_it_took_and_what_came_of_it():
    clock = Clock()
    credential = Credential(clock, life=100)
    token = credential.issue(life=100)
    credential.answer = lambda _: token
    credential.delay = 2.0
    source = source_of(credential, clock, factory=True)
    stream = source.events()
    async with source:
        await asyncio.sleep(60)
    ended = [each for each in await read(stream) if isinstance(each, AcquisitionEnded)]
    assert [each.outcome for each in ended[:2]] == ["published", "unchanged"]
    assert [each.seconds for each in ended[:2]] == pytest.approx([2.0, 2.0])
    assert [each.error for each in ended[:2]] == [None, None]


async def test_a_client_tells_of_its_source_too_and_ends_with_it():
    place = TokenPlace()
    client = place.client()
    stream = client.events()
    await place.idle(client, 1)
    await asyncio.sleep(65)
    assert not stream._closed
    await place.close()
    kinds = {type(each) for each in await read(stream)}
    assert kinds >= {TokenPublished, ConnectionOpened, Reauthenticated, ConnectionClosed}
    assert await read(client.events()) == []


async def test_the_last_event_of_a_client_that_owns_its_source_is_the_end_of_that():
    place = TokenPlace()
    client = place.client()
    client.own(place.source)
    stream = client.events()
    await client.get("k")
    await place.close()
    last = [each async for each in stream][-1]
    assert isinstance(last, TokenStateChanged)
    assert last.new is TokenState.CLOSED


async def test_streams_end_although_closing_fails(place: Place, monkeypatch):
    client = place.client()
    place.clients.clear()
    await client.ping()
    stream = client.events()
    monkeypatch.setattr(client._subscribers, "aclose", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await client.aclose()
    assert await read(stream) == []
    assert stream._closed
    await client._multiplexed.let_go()


async def test_a_client_without_tokens_may_be_opened_again_and_so_may_its_events(place: Place):
    client = place.client()
    first = client.events()
    await client.ping()
    await client.aclose()
    assert [type(each) for each in await read(first)] == [ConnectionOpened, ConnectionClosed]
    await client.ping()
    second = client.events()
    await client.aclose()
    assert [type(each) for each in await read(second)] == [ConnectionClosed]


async def test_copies_of_a_client_have_streams_of_their_own(place: Place):
    client = place.client()
    await client.ping()
    copied = client.__copy__()
    stream, other = copied.events(), client.events()
    await copied.aclose()
    assert await read(stream) == []
    assert not other._closed


async def test_a_client_nobody_listens_to_has_no_listeners(place: Place):
    client = place.client()
    await client.ping()
    assert client._hub._listeners == []


async def test_what_had_an_auth_sent_is_told():
    place = TokenPlace()
    client = place.client()
    refused: list[Any] = [b"-WRONGPASS no\r\n"]
    await place.idle(client, 1)
    place.peer.script["AUTH"] = refused
    await asyncio.sleep(75)
    assert [each.trigger for each in place.of(Reauthenticated)] == [AuthTrigger.PROBE]
    await asyncio.sleep(40)
    triggers = [each.trigger for each in place.of(Reauthenticated)]
    assert triggers == [AuthTrigger.PROBE, AuthTrigger.RENEWAL]
    await place.close()
