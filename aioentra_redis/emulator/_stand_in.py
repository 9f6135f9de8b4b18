"""Everything that runs in the emulator's own process, put together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ._authority import make_authority
from ._certificates import Certificates, make_certificates
from ._control import Method, serve_control
from ._directory import TENANT_ID, Directory, Events, make_identities
from ._door import loopback_sockets, port_of
from ._fleet import Fleet
from ._front import Front
from ._front_control import FrontControl
from ._gate import Gate
from ._managed_identity import APP_SERVICE_PATH, make_managed_identity
from ._operations import Operations
from ._options import Options
from ._policies import check_policy
from ._records import StartDetails
from ._server import find_server
from ._settings import Countdown, Cut, Faults, IdentityFailure
from ._site import Site
from ._tokens import REDIS_RESOURCE, TokenIssuer, TokenVerifier, generate_key

__all__ = ["StandIn"]

MAX_SOCKET_PATH = 90
"""Unix socket paths end at 104 bytes on macOS and 108 on Linux; a cluster's are 7 longer."""


class StandIn:
    """The authority, the managed identity endpoints, the server and the front, under control."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._events = Events()
        self._faults = Faults()
        self._policies: dict[str, str] = {}
        self._sites: list[Site] = []
        self._presented = self._presented_by_authority = "good"
        self._stack = contextlib.AsyncExitStack()

    # ------------------------------------------------------------------------------ start and end

    async def start(self) -> StartDetails:
        """Start everything; return what users need to know. Undoes itself on an error."""
        try:
            return await self._start()
        except BaseException:
            await self.aclose()
            raise

    async def _start(self) -> StartDetails:
        options = self._options
        executable = find_server(options.server)
        directory = _private_directory()
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)

        certificate_path = str(directory / "client.pem")
        identities = make_identities(certificate_path)
        self._policies.update(
            {each.object_id: options.settings.policy for each in identities.values()}
        )
        self._fleet = Fleet(options, executable, directory)
        self._stack.push_async_callback(self._fleet.aclose)
        starting = asyncio.create_task(self._fleet.start(self._policies))
        self._stack.push_async_callback(_ended, starting)
        await asyncio.sleep(0)

        principal = identities["service_principal"]
        certificates = make_certificates(
            directory, principal.client_id, options.offer.certificate_names
        )
        self._certificates = certificates
        issuer = TokenIssuer(TENANT_ID, clock=time.time)
        self._directory = Directory(
            identities.values(),
            issuer,
            settings=options.settings,
            faults=self._faults,
            events=self._events,
        )
        self._verifier = TokenVerifier(issuer.public_keys)
        self._gate = Gate(self._verifier, self._policies, self._faults, tenant_id=TENANT_ID)

        authority = await self._serve_authority(certificates)
        identity_header = secrets.token_hex(16)
        application = make_managed_identity(
            self._directory,
            system_assigned=identities["system_assigned"],
            user_assigned=identities["user_assigned"],
            identity_header=identity_header,
        )
        sockets = loopback_sockets(options.managed_identity_port, v6=False)
        await self._serve(application, sockets)
        managed_identity_url = f"http://127.0.0.1:{port_of(sockets)}"

        await starting
        self._front = Front(self._gate, faults=self._faults, events=self._events)
        self._stack.push_async_callback(self._front.aclose)
        await self._fleet.open(self._front, certificates.redis_context)
        plaintext = self._fleet.plaintext_port

        self._operations = Operations(self._fleet, self._policies)
        control = directory / "control.sock"
        control_server = await serve_control(control, self.methods())
        self._stack.callback(control_server.close)
        return StartDetails(
            url=f"rediss://localhost:{self._fleet.port}",
            plaintext_url=f"redis://127.0.0.1:{plaintext}" if plaintext else None,
            authority=authority,
            managed_identity_url=managed_identity_url,
            app_service_url=managed_identity_url + APP_SERVICE_PATH,
            identity_header=identity_header,
            control_path=str(control),
            directory=str(directory),
            ca_file=str(certificates.ca_file),
            ca_bundle=str(certificates.ca_bundle),
            federated_token_file=str(certificates.federated_token_file),
            tenant_id=TENANT_ID,
            server_version=self._fleet.version,
            profile=options.profile,
            **identities,
        )

    async def _serve_authority(self, certificates: Certificates) -> str:
        sockets = loopback_sockets(self._options.authority_port)
        base_url = f"https://localhost:{port_of(sockets)}"
        application = make_authority(self._directory, certificates, base_url)
        await self._serve(application, sockets, certificates)
        return base_url

    async def _serve(
        self,
        application: web.Application,
        sockets: list[socket.socket],
        certificates: Certificates | None = None,
    ) -> None:
        context = certificates.server_context if certificates is not None else None
        site = Site(application, sockets, context)
        self._stack.push_async_callback(site.aclose)
        await site.start()
        self._sites.append(site)

    async def aclose(self) -> None:
        """Stop everything and remove every file."""
        self._faults.heal()
        await self._stack.aclose()

    # ------------------------------------------------------------------------------------ control

    def methods(self) -> dict[str, Method]:
        """What can be called through the control channel, by name."""
        return {
            "configure": self.configure,
            "cut_identity": self.cut_identity,
            "delay_identity": self.delay_identity,
            "fail_identity": self.fail_identity,
            "hang_identity": self.hang_identity,
            "heal": self.heal,
            "issue_token": self.issue_token,
            "log": self.log,
            "next_tokens": self.next_tokens,
            "present_certificate": self.present_certificate,
            "present_identity_certificate": self.present_identity_certificate,
            "refuse_identity": self.refuse_identity,
            "reset": self.reset,
            "rotate_signing_key": self.rotate_signing_key,
            "set_policy": self.set_policy,
            **FrontControl(self._front, self._faults, self._fleet.check).methods(),
            **self._operations.methods(),
        }

    async def configure(self, **changes: Any) -> None:
        self._directory.change_settings(changes)

    async def next_tokens(self, **changes: Any) -> None:
        self._directory.change_claims(changes)

    async def issue_token(self, *, object_id: str, lifetime: float | None = None) -> str:
        identity = self._directory.find(object_id=object_id)
        if identity is None:
            raise ValueError(f"there is no identity with the object ID {object_id}")
        token = self._directory.issue(
            identity, REDIS_RESOURCE, endpoint="control", lifetime=lifetime
        )
        return token.value

    async def fail_identity(self, *, times: int | None, **failure: Any) -> None:
        self._faults.failure = IdentityFailure(**failure)
        self._faults.failures = Countdown(times)

    async def delay_identity(self, *, seconds: float) -> None:
        self._faults.identity_delay = seconds

    async def hang_identity(self, *, times: int | None) -> None:
        self._faults.hangs = Countdown(times)

    async def cut_identity(self, *, times: int | None, **cut: Any) -> None:
        self._faults.cut = Cut(**cut)
        self._faults.cuts = Countdown(times)

    async def refuse_identity(self) -> None:
        for site in self._sites:
            await site.refuse()

    async def rotate_signing_key(self) -> None:
        # In a thread: making a key takes longer than clients at work should notice.
        self._directory.issuer.rotate(await asyncio.to_thread(generate_key))
        self._directory.forget_tokens()

    async def set_policy(self, *, object_id: str, policy: str, node: int | None = None) -> None:
        check_policy(policy, self._options.offer.policies)
        self._fleet.check(node)
        object_id = object_id.lower()
        if not object_id or not all(each.isalnum() or each == "-" for each in object_id):
            raise ValueError(f"not an object ID: {object_id!r}")
        await self._fleet.set_policy(object_id, policy, node)
        self._policies[object_id] = policy
        self._faults.forgive(object_id, node)

    async def present_certificate(self, *, kind: str) -> None:
        if kind != self._presented:
            self._certificates.present(kind)
            self._presented = kind

    async def present_identity_certificate(self, *, kind: str) -> None:
        if kind != self._presented_by_authority:
            self._certificates.present(kind, to="identity")
            self._presented_by_authority = kind

    async def heal(self) -> None:
        self._faults.heal()
        self._front.heal()
        await self.present_certificate(kind="good")
        await self.present_identity_certificate(kind="good")
        self._directory.forget_tokens()
        for site in self._sites:
            await site.start()

    async def reset(self) -> None:
        """Heal, cut connections, restore settings and policies, remove data, empty the log."""
        interfered = await self._operations.give_up()
        await self.heal()
        self._front.drop()
        self._directory.settings = self._options.settings
        self._policies.clear()
        self._policies.update(
            {each.object_id: self._options.settings.policy for each in self._directory.identities}
        )
        await self._fleet.reset(self._policies, anew=interfered)
        self._events.clear()

    async def log(self) -> Mapping[str, list[dict[str, Any]]]:
        return {
            "tokens": [dataclasses.asdict(each) for each in self._events.tokens],
            "requests": [dataclasses.asdict(each) for each in self._events.requests],
            "auths": [dataclasses.asdict(each) for each in self._events.auths],
            "closes": [dataclasses.asdict(each) for each in self._events.closes],
        }


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task, if it is not done, and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait([task])


def _private_directory() -> Path:
    """A new directory that only this user can look into, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="aioentra-"))
    if len(str(path)) > MAX_SOCKET_PATH - len("/control.sock"):
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="aioentra-", dir="/tmp"))
    return path
