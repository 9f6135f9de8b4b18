"""The states of a token source, as a table, and what an error says of the next attempt."""

from __future__ import annotations

from types import MappingProxyType

from ._events import TokenState
from .errors import TokenAcquisitionError, TokenError

__all__ = ["HOLDS_VALID_TOKEN", "TRANSITIONS", "retry_after", "worth_retrying"]

S = TokenState
TRANSITIONS = MappingProxyType(
    {
        S.STARTING: {
            S.FRESH,  # the first token
            S.FAILED,  # start gives up; a later start may try again
            S.CLOSED,
        },
        S.FRESH: {
            S.DUE,  # the planned renewal time has come
            S.EXPIRED,  # the wall clock passed the expiry at once: suspended, or stepped
            S.CLOSED,
        },
        S.DUE: {
            S.FRESH,  # a newer token was published
            S.DEGRADED,  # a burst failed, the current token is still valid
            S.EXPIRED,
            S.CLOSED,
        },
        S.DEGRADED: {S.FRESH, S.EXPIRED, S.CLOSED},
        S.EXPIRED: {
            S.FRESH,
            S.DUE,  # the wall clock was stepped back: the token is valid after all
            S.CLOSED,
        },
        S.FAILED: {S.STARTING, S.CLOSED},
        S.CLOSED: frozenset[TokenState](),  # final
    }
)
HOLDS_VALID_TOKEN = frozenset({S.FRESH, S.DUE, S.DEGRADED})


def worth_retrying(error: TokenError) -> bool:
    """Whether the same request may succeed within seconds."""
    return isinstance(error, TokenAcquisitionError) and error.transient


def retry_after(error: TokenError) -> float | None:
    return error.retry_after if isinstance(error, TokenAcquisitionError) else None
