"""Tokens that nobody checks: a server's user takes any, so they can rotate as fast as one likes."""

from __future__ import annotations

import time
from typing import Any

from azure.core.credentials import AccessTokenInfo

from aioentra_redis import TokenSource

from .signing_in import BRISK
from .token_fakes import jwt

__all__ = ["OID", "free_source"]

OID = "0e11a500-0000-4000-8000-000000000d1f"
"""Who the tokens are of: the user that the server has to have, without a password."""


class _Mint:
    """A credential factory and its only instance; nobody checks its tokens."""

    def __init__(self, believed: float) -> None:
        self._believed = believed

    async def __call__(self) -> _Mint:
        return self

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        now = time.time()
        claims = {"oid": OID, "tid": "t", "aud": "https://redis.azure.com", "iat": now}
        expires_on: Any = now + self._believed
        return AccessTokenInfo(jwt({**claims, "exp": now + 30}), expires_on)


def free_source(believed: float, **options: Any) -> TokenSource:
    """A token source that renews after half of ``believed`` seconds."""
    return TokenSource.from_credential_factory(_Mint(believed), **{"refresh": BRISK, **options})
