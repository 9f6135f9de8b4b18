"""A few sign in at once, in order; nobody waits for ever, and nobody takes a slot along."""

from __future__ import annotations

import asyncio

import pytest
from support.pooled import Place

from aioentra_redis import ConfigurationError, TokenRefreshConfig
from aioentra_redis._budget import Budget
from aioentra_redis._schedule import SLOT_HOLD, slot_patience
from aioentra_redis._servers import server_of
from aioentra_redis._token import Token

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_free_slot_costs_no_turn_of_the_loop():
    budget = Budget(2)
    turns = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    first, second = await budget.take(), budget.take_now()
    assert turns == []
    assert second is not None
    assert budget.take_now() is None
    first.release()
    assert budget.take_now() is not None


async def test_those_in_line_get_their_turn_in_order():
    budget = Budget(2)
    order: list[int] = []
    at_once: list[int] = []
    under_way = 0

    async def sign_in(number: int) -> None:
        nonlocal under_way
        slot = await budget.take()
        under_way += 1
        at_once.append(under_way)
        order.append(number)
        await asyncio.sleep(0.1)
        under_way -= 1
        slot.release()

    await asyncio.gather(*(sign_in(n) for n in range(10)))
    assert order == list(range(10))
    assert max(at_once) == 2
    assert now() == pytest.approx(0.5)
    assert budget.waiting == 0


async def test_nobody_overtakes_those_in_line():
    budget = Budget(1)
    slot = await budget.take()
    waiting = asyncio.create_task(budget.take())
    await asyncio.sleep(0)
    slot.release()
    assert budget.take_now() is None
    (await waiting).release()
    assert budget.take_now() is not None


async def test_a_slot_that_is_not_given_back_is_taken_back():
    budget = Budget(1)
    hanging = await budget.take()
    await budget.take()
    assert now() == pytest.approx(SLOT_HOLD)
    hanging.release()  # late, and once is enough
    assert budget.take_now() is None


async def test_who_can_not_wait_any_longer_goes_without():
    budget = Budget(1)
    slot = await budget.take()
    beyond = await budget.take(0.25)
    assert now() == pytest.approx(0.25)
    beyond.release()
    assert budget.take_now() is None, "it was no slot"
    slot.release()
    assert budget.take_now() is not None


@pytest.mark.parametrize(("cancel_at", "release_at"), [(0.1, 0.2), (0.2, 0.2), (0.2, 0.1)])
async def test_cancelling_it_loses_no_slot(cancel_at: float, release_at: float):
    budget = Budget(1)
    slot = await budget.take()
    first, second = (asyncio.create_task(budget.take()) for _ in range(2))
    loop = asyncio.get_running_loop()
    loop.call_at(cancel_at, first.cancel)
    loop.call_at(release_at, slot.release)
    await asyncio.wait({first})
    if not first.cancelled():
        first.result().release()
    (await second).release()
    assert now() < SLOT_HOLD
    assert budget.take_now() is not None
    assert budget.waiting == 0


async def test_cancelled_in_the_moment_of_its_turn():
    budget = Budget(1)
    slot = await budget.take()
    waiting = asyncio.create_task(budget.take())
    await asyncio.sleep(0)
    slot.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.take_now() is not None


@pytest.mark.parametrize("life", [2.0, 60.0, 3600.0, 86_400.0])
def test_patience_leaves_time_for_the_answer(life: float):
    held = Token("s", username="u", expires_on=life, issued_on=0.0, first_seen=0.0)
    previous = None
    for share in (0.1, 0.5, 0.69, 0.71, 0.9, 0.99):
        at = share * life
        assert 0 <= slot_patience(held, at) <= (life - at) / 2
        previous = at
    assert previous is not None
    assert slot_patience(held, life + 1) == 0


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", float("inf")])
def test_how_many_is_a_whole_number(value: object):
    with pytest.raises(ConfigurationError, match="max_concurrent_auths"):
        TokenRefreshConfig(max_concurrent_auths=value)  # type: ignore[arg-type]


def test_the_default():
    assert TokenRefreshConfig().max_concurrent_auths == 8


# -------------------------------------------------------------------------- idle connections


async def test_a_ping_in_line_does_not_keep_the_auth_behind_it_past_its_deadline():
    place = Place()
    client = place.client(pool=place.pool(health_check_interval=10))
    await client.ping()
    await place.idle(client, 1)
    budget = server_of(place.source, "localhost:6379").budget
    await asyncio.sleep(5)
    crowd = [asyncio.create_task(budget.take()) for _ in range(800)]  # of whom nobody gets through
    await asyncio.sleep(64)
    assert {row.token_version for row in client.auth_status()} == {2}
    for each in crowd:
        each.cancel()
    await asyncio.wait(crowd)
    await place.close()
