"""A scripted Redis server that also holds lists, transactions, watches and one kind of script."""

from __future__ import annotations

import asyncio
from typing import Any

from .pubsub_peer import PubSubPeer
from .scripted_peer import HANG, OK, Connection, bulk

__all__ = ["WorkingPeer"]

NULL = b"_\r\n"
QUEUED = b"+QUEUED\r\n"


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


class WorkingPeer(PubSubPeer):
    """Answers each command ``latency`` seconds after its turn has come.

    Its lists are what ``RPUSH`` and ``BLPOP`` make of them; ``popped`` are the elements that were
    sent to somebody. The only script that it runs is that of a lock's release.
    """

    def __init__(self, latency: float = 0.001, **script: Any) -> None:
        super().__init__(protocol=3, **script)
        self.latency = latency
        self.lists: dict[bytes, list[bytes]] = {}
        self.popped: list[bytes] = []
        self.executed: list[list[bytes]] = []
        self._waiting: list[tuple[Connection, bytes]] = []
        self._queues: dict[Connection, list[list[bytes]]] = {}
        self._watches: dict[Connection, dict[bytes, bytes | None]] = {}

    def steps_for(self, words: list[bytes], connection: Connection) -> list[Any]:
        name = words[0].upper()
        queue = self._queues.get(connection)
        if queue is not None and name not in (b"EXEC", b"DISCARD", b"AUTH"):
            queue.append(words)
            return [self.latency, QUEUED]
        scripted = name.decode() in self.script
        steps = [] if scripted else self._answer(name, words, connection)
        return [self.latency, *(steps or super().steps_for(words, connection))]

    def _answer(self, name: bytes, words: list[bytes], connection: Connection) -> list[Any]:
        match name:
            case b"MULTI":
                self._queues[connection] = []
                return [OK]
            case b"DISCARD":
                self._queues.pop(connection, None)
                return [OK]
            case b"EXEC":
                return [self._execute(connection)]
            case b"WATCH":
                for key in words[1:]:
                    self._watches.setdefault(connection, {})[key] = self.values.get(key)
                return [OK]
            case b"UNWATCH":
                self._watches.pop(connection, None)
                return [OK]
            case b"BLPOP":
                return self._pop(words, connection)
            case b"RPUSH":
                return [self._push(words[1], words[2:])]
            case b"INCRBY":
                self.values[words[1]] = b"%d" % (int(self.values.get(words[1], b"0")) + 1)
                return [b":%b\r\n" % self.values[words[1]]]
            case b"MGET":
                held = [self.values.get(key) for key in words[1:]]
                return [array(*(NULL if value is None else bulk(value) for value in held))]
            case b"SET" if b"NX" in words:
                if words[1] in self.values:
                    return [NULL]
                self.values[words[1]] = words[2]
                return [OK]
            case b"EVALSHA" | b"EVAL":
                owner = self.values.get(words[3])
                if owner == words[4]:
                    del self.values[words[3]]
                return [b":%d\r\n" % (owner == words[4])]
        return []

    def _execute(self, connection: Connection) -> bytes:
        queue = self._queues.pop(connection, [])
        watched = self._watches.pop(connection, {})
        if any(self.values.get(key) != value for key, value in watched.items()):
            return NULL
        self.executed += queue
        replies = []
        for words in queue:
            answer = self._answer(words[0].upper(), words, connection)
            replies.append(
                answer[0] if answer else self.usual_answer(words[0].upper().decode(), words)
            )
        return array(*replies)

    def _push(self, key: bytes, elements: list[bytes]) -> bytes:
        length = len(self.lists.setdefault(key, []))
        for element in elements:
            length += 1
            for waiter in self._waiting:
                if waiter[1] == key and not waiter[0].closed:
                    self._waiting.remove(waiter)
                    self._hand_out(waiter[0], key, element)
                    waiter[0].go_on()
                    break
            else:
                self.lists[key].append(element)
        return b":%d\r\n" % length

    def _pop(self, words: list[bytes], connection: Connection) -> list[Any]:
        key, seconds = words[1], float(words[-1])
        if self.lists.get(key):
            self._hand_out(connection, key, self.lists[key].pop(0))
            return [b""]
        waiter = (connection, key)
        self._waiting.append(waiter)

        def time_is_up() -> None:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                connection.send(NULL)
                connection.go_on()

        if seconds:
            asyncio.get_running_loop().call_later(seconds, time_is_up)
        return [HANG]

    def _hand_out(self, connection: Connection, key: bytes, element: bytes) -> None:
        self.popped.append(element)
        connection.send(array(bulk(key), bulk(element)))
