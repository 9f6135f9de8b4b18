"""Control over the identity half of the emulator: tokens, and the faults of those who give them."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ._records import Identity
from ._server_control import CertificateKind

__all__ = ["IdentityControl"]

Faulty = Literal["token", "imds", "app-service"]
"""An endpoint that can fail."""


class IdentityControl(abc.ABC):
    """What :class:`~aioentra_redis.emulator.Emulator` can do to its identity endpoints."""

    @property
    @abc.abstractmethod
    def service_principal(self) -> Identity: ...

    @abc.abstractmethod
    async def _call(self, method: str, **params: Any) -> Any: ...

    async def fail_identity(
        self,
        times: int | None = None,
        *,
        status: int = 503,
        error: str = "temporarily_unavailable",
        code: int | None = None,
        description: str | None = None,
        retry_after: float | str | None = None,
        body: str | None = None,
        endpoint: Faulty | None = None,
    ) -> None:
        """Make the identity endpoints fail ``times`` times, or until told otherwise.

        :param error: the OAuth error, such as "invalid_client"
        :param code: the number behind AADSTS, such as 7000215
        :param retry_after: the header of that name: seconds, or text such as an HTTP date
        :param body: a raw body instead of an error document
        :param endpoint: limits the failure to one endpoint
        """
        await self._call(
            "fail_identity",
            times=times,
            status=status,
            error=error,
            code=code,
            description=description,
            retry_after=retry_after,
            body=body,
            endpoint=endpoint,
        )

    async def delay_identity(self, seconds: float) -> None:
        """Make the identity endpoints answer so many seconds later."""
        await self._call("delay_identity", seconds=seconds)

    async def hang_identity(self, times: int | None = None) -> None:
        """Make the identity endpoints take requests and not answer them until ``heal``."""
        await self._call("hang_identity", times=times)

    async def cut_identity(
        self,
        after: int | None,
        times: int | None = None,
        *,
        then: Literal["close", "hang", "end"] = "close",
        endpoint: Faulty | None = None,
    ) -> None:
        """Cut the answers of the identity endpoints off, ``times`` times or until told otherwise.

        :param after: how many bytes of the body are sent; None sends nothing, not even the head
        :param then: what follows: the connection closes, or nothing more comes until ``heal``
            (Content-Length promises the whole in both cases), or "end": Content-Length says that
            this was all, so that only the document is broken
        :param endpoint: limits it to one endpoint
        """
        await self._call("cut_identity", after=after, times=times, then=then, endpoint=endpoint)

    async def refuse_identity(self) -> None:
        """Make the identity endpoints refuse connections, and end those they have, until
        ``heal``."""
        await self._call("refuse_identity")

    async def present_identity_certificate(self, kind: CertificateKind) -> None:
        """Present another certificate to those who connect to the authority from now on.

        The kinds are those of ``present_certificate``. Open connections go on.
        """
        await self._call("present_identity_certificate", kind=kind)

    async def rotate_signing_key(self) -> None:
        """Sign tokens with a new key from now on; those signed with older keys remain good."""
        await self._call("rotate_signing_key")

    async def next_tokens(
        self,
        *,
        oid: str | None = None,
        tenant_id: str | None = None,
        audience: str | None = None,
        opaque: bool = False,
        forged: bool = False,
        without: Iterable[str] = (),
        extra: Mapping[str, Any] | None = None,
        answer: Mapping[str, Any] | None = None,
    ) -> None:
        """Make tokens issued from now on differ from good ones; without arguments, not at all.

        :param opaque: not a JWT at all
        :param forged: signed with a key that is not the authority's
        :param without: claims that are missing
        :param extra: claims that are added or replaced
        :param answer: fields of the answer around the token, such as ``expires_in`` or
            ``refresh_in``, that are added or replaced
        """
        await self._call(
            "next_tokens",
            oid=oid,
            tenant_id=tenant_id,
            audience=audience,
            opaque=opaque,
            forged=forged,
            without=list(without),
            extra=dict(extra or {}),
            answer=dict(answer or {}),
        )

    async def issue_token(
        self, identity: Identity | None = None, *, lifetime: float | None = None
    ) -> str:
        """A token for an identity (the service principal's by default), without a credential.

        It lives ``lifetime`` seconds, or as long as a service principal's; ``next_tokens`` holds
        for it.
        """
        object_id = (identity or self.service_principal).object_id
        token: str = await self._call("issue_token", object_id=object_id, lifetime=lifetime)
        return token
