"""A scripted Redis server that knows of publish/subscribe, on one node and in one order."""

from __future__ import annotations

from typing import Any

from support.scripted_peer import Connection, Peer, bulk

NOPERM = b"-NOPERM No permissions to access a channel\r\n"
PREFIXES = (b"", b"p", b"s")


class PubSubPeer(Peer):
    """Serves RESP2 or RESP3 subscribers; what the script doesn't answer is answered as a server
    would. ``forbidden`` are channels that nobody may subscribe to."""

    def __init__(self, protocol: int = 2, **script: Any) -> None:
        super().__init__(**script)
        self.protocol = protocol
        self.forbidden: set[bytes] = set()
        self.subscribed: dict[Connection, dict[bytes, list[bytes]]] = {}
        self.published: list[bytes] = []
        self.refuses_names_with: bytes | None = None

    def names(self, connection: Connection) -> dict[bytes, list[bytes]]:
        return self.subscribed.setdefault(connection, {prefix: [] for prefix in PREFIXES})

    def out_of_band(self, *parts: bytes | int | None) -> bytes:
        sign = b">" if self.protocol == 3 else b"*"
        nothing = b"_\r\n" if self.protocol == 3 else b"$-1\r\n"
        encoded = [
            nothing if part is None else b":%d\r\n" % part if isinstance(part, int) else bulk(part)
            for part in parts
        ]
        return sign + b"%d\r\n" % len(parts) + b"".join(encoded)

    def steps_for(self, words: list[bytes], connection: Connection) -> list[Any]:
        name = words[0].lower()
        if words[0].upper().decode() not in self.script:
            for prefix in PREFIXES:
                if name == prefix + b"subscribe":
                    return [self.subscribe(connection, prefix, words[1:])]
                if name == prefix + b"unsubscribe":
                    return [self.unsubscribe(connection, prefix, words[1:])]
            if name == b"ping" and self.protocol == 2 and any(self.names(connection).values()):
                return [b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"]
            if name == b"publish":
                return [b":%d\r\n" % self.publish(words[1], words[2])]
        return super().steps_for(words, connection)

    def subscribe(self, connection: Connection, prefix: bytes, names: list[bytes]) -> bytes:
        refused = self.refuses_names_with
        for name in names:
            if name in self.forbidden or (refused is not None and name.startswith(refused)):
                return NOPERM
        mine = self.names(connection)[prefix]
        answer = b""
        for name in names:
            if name not in mine:
                mine.append(name)
            answer += self.out_of_band(prefix + b"subscribe", name, len(mine))
        return answer

    def unsubscribe(self, connection: Connection, prefix: bytes, names: list[bytes]) -> bytes:
        mine = self.names(connection)[prefix]
        answer = b""
        for name in names or list(mine) or [None]:  # type: ignore[list-item]
            if name in mine:
                mine.remove(name)
            answer += self.out_of_band(prefix + b"unsubscribe", name, len(mine))
        return answer

    def publish(self, channel: bytes, data: bytes = b"x", *, sharded: bool = False) -> int:
        """Give a message to whoever is subscribed; patterns end in a star."""
        count = 0
        self.published.append(channel)
        for connection in self.open:
            names = self.names(connection)
            if sharded:
                if channel in names[b"s"]:
                    connection.send(self.out_of_band(b"smessage", channel, data))
                continue
            if channel in names[b""]:
                count += 1
                connection.send(self.out_of_band(b"message", channel, data))
            for pattern in names[b"p"]:
                if channel.startswith(pattern.rstrip(b"*")):
                    count += 1
                    connection.send(self.out_of_band(b"pmessage", pattern, channel, data))
        return count
