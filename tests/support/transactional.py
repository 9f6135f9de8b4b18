"""A scripted peer that knows transactions, and what tests of pipelines share."""

from __future__ import annotations

import asyncio
from typing import Any

from support.place import Place
from support.scripted_peer import OK, Peer

from aioentra_redis import EntraRedis
from aioentra_redis._multiplex._session import FEW

LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"


class Transactional(Peer):
    """A peer that queues what stands between MULTI and EXEC."""

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.queued: list[bytes] | None = None
        self.aborted = False

    def usual_answer(self, name: str, words: list[bytes]) -> bytes:
        return super().usual_answer("INCR" if name == "INCRBY" else name, words)

    def steps_for(self, words: list[bytes], connection: Any) -> list[Any]:
        steps = super().steps_for(words, connection)
        name = words[0].upper()
        if steps != [b"-ERR unknown command\r\n"] and name in (b"MULTI", b"EXEC"):
            return steps  # the script knows better
        if name == b"MULTI":
            self.queued, self.aborted = [], False
            return [OK]
        if name == b"EXEC":
            queued, self.queued = self.queued, None
            if queued is None:
                return [b"-ERR EXEC without MULTI\r\n"]
            return [ABORTED if self.aborted else b"*%d\r\n" % len(queued) + b"".join(queued)]
        if self.queued is not None:
            if steps[0].startswith(b"-QUEUEING"):
                self.aborted = True
                return [b"-" + steps[0][len(b"-QUEUEING ") :]]
            self.queued.append(b"".join(steps))
            return [b"+QUEUED\r\n"]
        return steps


def written(place: Place) -> list[bytes]:
    """What each write since the last call was, on the newest connection."""
    wire: Any = place.peer.connections[-1]._send.__self__  # type: ignore[attr-defined]
    writes = list(wire.writes)
    wire.writes.clear()
    return writes


async def error_of(awaitable: Any) -> BaseException:
    try:
        reply = await awaitable
    except BaseException as exc:
        return exc
    raise AssertionError(f"no error but {reply!r}")


async def crowd(client: EntraRedis) -> None:
    """Have so many callers that the next turn of the loop is waited for before a write."""
    await asyncio.gather(*[client.ping() for _ in range(FEW + 2)])
