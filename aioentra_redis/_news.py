"""Is it news? Whether a token that a credential returned should replace the current one."""

from __future__ import annotations

from ._entra_errors import Subject
from ._token import Token
from .errors import IdentityChangedError

__all__ = ["Identity", "is_news"]


def is_news(token: Token, current: Token | None) -> bool:
    """Whether ``token`` is another one and lives longer; only then is it worth an AUTH.

    azure-identity returns its cached token, and swallows a failed refresh in the last 300 s before
    the expiry, so an answer without an error need not be a newer token. The ``exp`` claims decide
    where they differ: they are the authority's, and don't change when the clock here is set. They
    are whole seconds, though, and what the credential said may be finer.
    """
    if current is None:
        return True
    new, old = token.claimed_expiry, current.claimed_expiry
    if new is None or old is None or new == old:
        new, old = token.expires_on, current.expires_on
    return token != current and new > old


class Identity:
    """Who a source signs in as: fixed by its first token.

    A chain credential can fall through to another identity, which would change who writes to the
    cache without anybody noticing.
    """

    def __init__(self) -> None:
        self._known = False
        self._oid: str | None = None
        self._tenant: str | None = None

    def fix(self, token: Token) -> None:
        """Remember whose ``token`` is; the tenant as soon as a token names one."""
        self._known = True
        self._oid = token.oid
        self._tenant = self._tenant or token.tenant_id

    def check(self, token: Token, subject: Subject) -> None:
        """Raise :exc:`IdentityChangedError` if ``token`` is known to be somebody else's."""
        comparable = self._tenant is not None and token.tenant_id is not None
        other_tenant = comparable and token.tenant_id != self._tenant
        if self._known and (token.oid != self._oid or other_tenant):
            raise IdentityChangedError(
                f"{subject} returned a token of oid {token.oid}, tenant {token.tenant_id}, but"
                f" this source signs in as oid {self._oid}, tenant {self._tenant}; it was not"
                " used. A chain credential has probably fallen through to another of its members:"
                " name the one credential that you mean."
            )
