from __future__ import annotations

import asyncio
import gc

import pytest

from aioentra_redis._broadcast import Broadcast
from aioentra_redis._events import RefreshFailed, TokenState
from aioentra_redis._token import Token


def token(version: int) -> Token:
    return Token(f"s{version}", username="u", expires_on=9.0, first_seen=0.0, version=version)


def failure(text: str = "down") -> RefreshFailed:
    return RefreshFailed("s", RuntimeError(text), 3, 30.0, TokenState.DEGRADED)


async def soon(subscription) -> object:
    """The next item, which must be there without waiting; None if there is none."""
    task = asyncio.ensure_future(anext(subscription))
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    return None


async def test_late_subscribers_get_the_current_token_at_once():
    broadcast = Broadcast()
    assert broadcast.current is None
    broadcast.publish(token(1))
    broadcast.publish(token(2))
    assert broadcast.current == token(2)
    subscription = broadcast.subscribe()
    assert await soon(subscription) == token(2)
    assert await soon(subscription) is None


@pytest.mark.parametrize(("after", "expected"), [(None, 2), (0, 2), (1, 2), (2, None), (5, None)])
async def test_a_handshake_with_the_current_token_needs_no_second_auth(after, expected):
    broadcast = Broadcast()
    broadcast.publish(token(2))
    got = await soon(broadcast.subscribe(after=after))
    assert got == (token(expected) if expected else None)


async def test_slow_subscribers_skip_what_they_missed():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    for version in range(1, 6):
        broadcast.publish(token(version))
    assert await soon(subscription) == token(5)
    assert await soon(subscription) is None


async def test_an_older_token_is_never_delivered_after_a_newer_one():
    broadcast = Broadcast()
    broadcast.publish(token(3))
    broadcast.publish(token(2))
    broadcast.publish(token(3))
    subscription = broadcast.subscribe()
    assert await soon(subscription) == token(3)
    assert await soon(subscription) is None


async def test_an_error_never_hides_a_token():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    broadcast.publish(token(1))
    first, second = failure("first"), failure("second")
    broadcast.publish_error(first)
    broadcast.publish_error(second)
    assert await soon(subscription) == token(1)
    assert await soon(subscription) is second
    assert await soon(subscription) is None


async def test_both_slots_come_in_order_of_publication():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    problem = failure()
    broadcast.publish_error(problem)
    broadcast.publish(token(1))
    assert await soon(subscription) is problem
    assert await soon(subscription) == token(1)


async def test_an_old_failure_is_not_news_to_a_new_subscriber():
    broadcast = Broadcast()
    broadcast.publish(token(1))
    broadcast.publish_error(failure())
    subscription = broadcast.subscribe(after=1)
    assert await soon(subscription) is None


async def test_only_closing_ends_the_iteration():
    broadcast = Broadcast()
    got = []

    async def consume(subscription):
        async for item in subscription:
            got.append(item)  # noqa: PERF401 - it is looked at before the iteration ends

    one, two = broadcast.subscribe(), broadcast.subscribe()
    tasks = [asyncio.ensure_future(consume(each)) for each in (one, two)]
    await asyncio.sleep(0)
    broadcast.publish(token(1))
    broadcast.publish_error(failure())
    await asyncio.sleep(0.01)
    assert len(got) == 4
    assert not any(task.done() for task in tasks)
    one.close()
    one.close()
    await asyncio.wait({tasks[0]}, timeout=1)
    assert [task.done() for task in tasks] == [True, False]
    assert len(broadcast) == 1
    broadcast.close()
    await broadcast.aclose()
    await asyncio.wait_for(tasks[1], 1)
    assert len(broadcast) == 0
    with pytest.raises(StopAsyncIteration):
        await anext(broadcast.subscribe())
    broadcast.publish(token(2))
    broadcast.publish_error(failure())
    assert broadcast.current == token(1)


async def test_cancelling_a_wait_loses_nothing():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    task = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    task.cancel()
    broadcast.publish(token(1))  # between the cancellation and the task's noticing it
    await asyncio.wait({task})
    assert task.cancelled()
    assert await soon(subscription) == token(1)


async def test_woken_but_cancelled_before_it_runs():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    task = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    broadcast.publish(token(1))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await soon(subscription) == token(1)


async def test_one_waiter_at_a_time():
    broadcast = Broadcast()
    subscription = broadcast.subscribe()
    task = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await anext(subscription)
    broadcast.publish(token(1))
    assert await task == token(1)


async def test_a_dropped_subscription_disappears():
    broadcast = Broadcast()
    kept = broadcast.subscribe()
    for _ in range(200):
        broadcast.subscribe()
    gc.collect()
    assert len(broadcast) == 1
    broadcast.publish(token(1))
    assert await soon(kept) == token(1)
    assert "version 1" in repr(kept)
    assert "open" in repr(kept)
    kept.close()
    assert "closed" in repr(kept)


async def test_publishing_wakes_everybody_and_waits_for_nobody():
    broadcast = Broadcast()
    idle = [broadcast.subscribe() for _ in range(10)]
    tasks = [asyncio.ensure_future(anext(broadcast.subscribe())) for _ in range(100)]
    await asyncio.sleep(0)
    broadcast.publish(token(1))
    assert await asyncio.gather(*tasks) == [token(1)] * 100
    assert len(idle) == 10
