"""The constructors of a token source, one for each way to sign in.

All take the arguments of :class:`~aioentra_redis.TokenSource` itself; ``authority`` is the login
host of a sovereign cloud (``login.microsoftonline.us``, ``login.chinacloudapi.cn``; default: the
variable ``AZURE_AUTHORITY_HOST``, then the public cloud), and everything else
(``connection_verify=``, ``proxies=``, ...) goes to azure's credential as it is. They do nothing
but remember: credentials are made when the first token is needed, off the loop. Arguments that
can be seen to be unusable raise :exc:`ConfigurationError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Self

from . import _credentials as credentials
from ._events import EventCallback
from ._redaction import Secret
from ._schedule import TokenRefreshConfig
from ._token import REDIS_SCOPE
from .errors import ConfigurationError

__all__ = ["Constructors", "Scopes"]

Scopes = str | Sequence[str]


class Constructors:
    """The ``from_...`` class methods; what they make, the source closes."""

    def __init__(
        self,
        credential: object,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
    ) -> None:
        raise TypeError("this class only holds constructors")

    @classmethod
    def from_default(
        cls,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """``DefaultAzureCredential``: environment, workload identity, managed identity, tools."""
        return cls(
            credentials.default({**options, "authority": authority}),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_developer_tools(
        cls,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """Whoever is signed in with the Azure CLI, or else with the Azure Developer CLI.

        ``options`` are ``tenant_id``, ``additionally_allowed_tenants`` and ``process_timeout``. The
        tools know their own cloud, so ``authority`` is ignored.
        """
        return cls(
            credentials.developer_tools(options),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_client_secret(
        cls,
        tenant_id: str,
        client_id: str,
        client_secret: str,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """A service principal with a client secret."""
        held = Secret(client_secret)
        del client_secret  # not left in a local variable: see _redaction
        return cls(
            credentials.client_secret(
                tenant_id, client_id, held, {**options, "authority": authority}
            ),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_client_certificate(
        cls,
        tenant_id: str,
        client_id: str,
        certificate: str | bytes | os.PathLike[str],
        *,
        password: str | bytes | None = None,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """A service principal with a certificate.

        ``certificate`` is a path, the bytes of a PEM or PKCS12 file, or base64 of a PKCS12 file;
        it includes the private key. A file is read at each renewal.
        """
        held = credentials.Certificate(certificate, password)
        del certificate, password  # not left in local variables: see _redaction
        return cls(
            credentials.client_certificate(
                tenant_id, client_id, held, {**options, "authority": authority}
            ),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_system_assigned_managed_identity(
        cls,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """This machine's own managed identity."""
        return cls(
            credentials.managed_identity({}, {**options, "authority": authority}),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_user_assigned_managed_identity(
        cls,
        *,
        client_id: str | None = None,
        object_id: str | None = None,
        resource_id: str | None = None,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """A managed identity assigned to this machine, named by exactly one of its IDs."""
        identity = {"client_id": client_id, "object_id": object_id, "resource_id": resource_id}
        if not any(identity.values()):
            raise ConfigurationError(
                "say which identity: pass client_id=, object_id= or resource_id="
            )
        return cls(
            credentials.managed_identity(identity, {**options, "authority": authority}),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_workload_identity(
        cls,
        *,
        tenant_id: str | None = None,
        client_id: str | None = None,
        token_file_path: str | None = None,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """Workload identity on Kubernetes; what is not given comes from ``AZURE_*`` variables."""
        return cls(
            credentials.workload_identity(
                tenant_id, client_id, token_file_path, {**options, "authority": authority}
            ),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_environment(
        cls,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        authority: str | None = None,
        **options: Any,
    ) -> Self:
        """A service principal that ``AZURE_*`` environment variables describe."""
        return cls(
            credentials.environment({**options, "authority": authority}),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )

    @classmethod
    def from_credential_factory(
        cls,
        factory: Callable[[], object],
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
    ) -> Self:
        """Credentials of your own making: ``factory()`` returns a new one for each renewal.

        A new instance has an empty cache, so tokens are renewed when ``refresh`` says. The
        instances are closed here. ``factory`` runs in a thread, unless it is a coroutine function.
        """
        return cls(
            credentials.credential_factory(factory),
            scopes=scopes,
            refresh=refresh,
            name=name,
            username=username,
            on_event=on_event,
        )
