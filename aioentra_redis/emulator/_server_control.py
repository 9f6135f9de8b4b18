"""What the emulator can do to its Redis, and to the wires that lead there."""

from __future__ import annotations

import abc
import base64
from typing import Any, Literal

__all__ = ["CertificateKind", "ServerControl"]

CertificateKind = Literal["good", "expired", "other-name", "unknown-ca"]


class ServerControl(abc.ABC):
    """The part of ``Emulator`` that makes Redis fail. ``heal`` and ``reset`` end all of it.

    Connections are told apart by the numbers that ``connections`` and the log give them. With
    ``node=``, the number of a node, what is done is done there alone.
    """

    @abc.abstractmethod
    async def _call(self, method: str, **params: Any) -> Any:
        """Call a method of the emulator's process."""

    # ---------------------------------------------------------------------------------- signing in

    async def refuse_auth(self, times: int | None = None, *, node: int | None = None) -> None:
        """Refuse good tokens ``times`` times, or until told otherwise."""
        await self._call("refuse_auth", times=times, node=node)

    async def delay_auth(self, seconds: float, *, node: int | None = None) -> None:
        """Answer AUTH, and HELLO with AUTH, so many seconds later.

        What follows on the same connection waits its turn; other connections don't notice.
        """
        await self._call("delay_auth", seconds=seconds, node=node)

    async def hang_auth(self, times: int | None = None, *, node: int | None = None) -> None:
        """Take AUTH, and HELLO with AUTH, and not answer it until ``heal``: ``times`` times, or
        until told otherwise.

        What follows on the same connection waits as well; other connections don't notice.
        """
        await self._call("hang_auth", times=times, node=node)

    # --------------------------------------------------------------------------------- connections

    async def drop_connections(
        self,
        *,
        connection: int | None = None,
        object_id: str | None = None,
        node: int | None = None,
    ) -> int:
        """Cut all connections, one by its number in the log, or those of one identity.

        Returns how many there were.
        """
        dropped: int = await self._call(
            "drop_connections", connection=connection, object_id=object_id, node=node
        )
        return dropped

    async def freeze_connections(
        self,
        *,
        connection: int | None = None,
        new: bool = False,
        execute: bool = False,
        node: int | None = None,
    ) -> int:
        """Turn connections into black holes: bytes are taken, and nothing comes back.

        All that are open, or one; with ``new`` those that are made from now on, too: TCP and TLS
        are answered, Redis is not. With ``execute`` the server runs what is sent and only the
        replies are kept back. ``heal`` lets everything through that has waited, requests and
        replies, late but complete; where the server has ended the connection meanwhile, as at the
        token's expiry, it ends then. Returns how many there were.
        """
        frozen: int = await self._call(
            "freeze_connections", connection=connection, new=new, execute=execute, node=node
        )
        return frozen

    async def abandon_connections(
        self, *, connection: int | None = None, node: int | None = None
    ) -> int:
        """Leave connections half open, all or one, as when the server's host vanishes.

        Nothing is read, answered or closed; what the client sends fills its buffers. With ``heal``
        the host is back, knows of no such connection, and resets it. Returns how many there were.
        """
        abandoned: int = await self._call("abandon_connections", connection=connection, node=node)
        return abandoned

    async def cut_replies(
        self, after: int, *, connection: int | None = None, node: int | None = None
    ) -> int:
        """Let ``after`` more bytes of replies pass on each open connection, or on one, and reset
        it at the byte behind them.

        What the server was sent until then it has executed. Returns how many there were.
        """
        armed: int = await self._call("cut_replies", after=after, connection=connection, node=node)
        return armed

    async def inject_reply(
        self, data: bytes, *, connection: int | None = None, node: int | None = None
    ) -> int:
        """Put raw bytes among the replies of every open connection, or of one: garbage, a push,
        a reply that nobody asked for. Returns how many there were."""
        text = base64.b64encode(data).decode()
        reached: int = await self._call("inject_reply", data=text, connection=connection, node=node)
        return reached

    async def present_certificate(self, kind: CertificateKind) -> None:
        """Present another certificate to those who connect to Redis over TLS from now on.

        ``"expired"``, ``"other-name"`` (valid, but for another host), ``"unknown-ca"`` (signed by
        a CA that is not in ``ca_file``), or ``"good"`` again. Open connections go on.
        """
        await self._call("present_certificate", kind=kind)

    # ---------------------------------------------------------------------------------- the server

    async def restart_server(
        self,
        *,
        keep_data: bool = False,
        downtime: float = 0.0,
        loading: float = 0.0,
        node: int | None = None,
    ) -> None:
        """Kill the server and start it again ``downtime`` seconds later.

        All servers of a cluster at the same time, unless ``node`` says which.

        Connections end; until it is back, new ones are accepted and closed at once. With
        ``keep_data`` it takes about ``loading`` seconds, if there is any data, to load it, and
        answers most commands with LOADING meanwhile; this returns before that.
        """
        await self._call(
            "restart_server", keep_data=keep_data, downtime=downtime, loading=loading, node=node
        )
