"""``entra_kwargs``: subscribers of plain redis-py clients across expiries."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio
from redis.asyncio import Redis
from support.listening import until_heard
from support.plain_clients import (
    client_for,
    patient_source,
    renewals,
    until_refused,
    until_renewed,
)
from support.signing_in import (
    Witness,
    minted_source,
    secret_source,
    until,
)

from aioentra_redis import (
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])

ENDS = r"because the token it was signed in with expired at \d\d:\d\d:\d\d UTC: "


@pytest.mark.parametrize("how", ["listen", "get_message", "polling", "run"])
async def test_row_6_a_resp3_subscriber_never_notices(entra_emulator: Emulator, how: str) -> None:
    """Also where nothing is published for longer than a token lives."""
    await entra_emulator.configure(token_lifetime=2)
    witness = Witness()
    async with secret_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        got: list[str] = []
        await pubsub.subscribe(a=lambda message: got.append(message["data"]))
        await pubsub.psubscribe(**{"b*": lambda message: got.append(message["data"])})

        async def listen() -> None:
            if how == "listen":
                async for _ in pubsub.listen():
                    pass
            elif how == "run":
                await pubsub.run()
            else:
                while True:
                    await pubsub.get_message(timeout=None if how == "get_message" else 0.05)

        listening = asyncio.create_task(listen())
        await until_heard(client, "a")
        await client.publish("a", "first")
        await witness.at_least(5, TokenPublished, timeout=20)
        for number in range(100):
            await client.publish("a" if number % 2 else "bb", str(number))
        await until(lambda: len(got) == 101)
        await pubsub.subscribe(c=lambda message: got.append(message["data"]))
        await until_heard(client, "c")
        await client.publish("c", "last")
        await until(lambda: len(got) == 102)
        assert got == ["first", *map(str, range(100)), "last"]
        assert not listening.done()
        connection = await number_of_subscriber(entra_emulator, client)
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()
    log = await entra_emulator.log()
    assert renewals(log)[connection] >= 3
    assert all(each.accepted for each in log.auths)


async def number_of_subscriber(emulator: Emulator, client: Redis) -> int:
    """The emulator's number of the connection that was renewed most: the subscriber's."""
    renewed = renewals(await emulator.log())
    return max(renewed, key=lambda number: renewed[number])


async def test_a_resp3_subscriber_at_a_thousand_messages_a_second(
    entra_emulator: Emulator,
) -> None:
    """(Un)subscribing meanwhile; every message of the channel that stays, once and in order."""
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.4, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        publisher = client_for(entra_emulator, source)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("stays")
        await until_heard(publisher, "stays")
        got: list[int] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["channel"] == "stays":
                    got.append(int(message["data"]))  # noqa: PERF401 - it never ends

        listening = asyncio.create_task(listen())
        sent = 0

        async def renewed_often() -> bool:
            """On a busy machine a token may be skipped that is followed by the next one."""
            renewed = renewals(await entra_emulator.log())
            return max(renewed.values()) >= 8

        while len(witness.of(TokenPublished)) < 12 or not await renewed_often():
            for _ in range(20):
                await publisher.publish("stays", sent)
                sent += 1
            if sent % 200 == 0:
                await pubsub.subscribe(f"other:{sent}")
            elif sent % 100 == 0:
                await pubsub.unsubscribe(f"other:{sent - 100}")
            await asyncio.sleep(0.01)
        await until(lambda: len(got) == sent)
        assert got == list(range(sent))
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()
        await publisher.aclose()
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert max(renewals(log).values()) >= 8


async def test_a_refused_auth_does_not_disturb_a_subscriber(entra_emulator: Emulator) -> None:
    witness = Witness()
    async with patient_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("a")
        got: list[str] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                got.append(message["data"])  # noqa: PERF401 - it never ends

        listening = asyncio.create_task(listen())
        await client.ping()
        await entra_emulator.refuse_auth()
        await until_refused(entra_emulator, 2)
        await client.publish("a", "still here")
        await until(lambda: got == ["still here"])
        await entra_emulator.heal()
        refused = len((await entra_emulator.log()).auths)
        await until_renewed(entra_emulator, refused + 1)
        await client.publish("a", "and again")
        await until(lambda: got == ["still here", "and again"])
        assert not listening.done()
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()


async def test_a_resp2_subscriber_is_told_why_it_ended(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source, protocol=2)
        pubsub = client.pubsub()
        await pubsub.subscribe("a")
        with pytest.raises(redis.ConnectionError, match=ENDS + "a RESP2 subscriber takes no newer"):
            async for _ in pubsub.listen():
                pass
        # And with the next read redis-py subscribes again, by itself.
        assert (await pubsub.get_message(timeout=5) or {})["type"] == "subscribe"
        await pubsub.aclose()
        await client.aclose()
