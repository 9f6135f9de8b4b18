"""Who may sign in: tokens, access policies and the faults of AUTH, in one verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ._session import Verdict
from ._settings import Faults
from ._tokens import TokenVerifier, refusal

__all__ = ["Gate"]


class Gate:
    """Judges sign-ins as Azure does.

    ``policies`` maps object IDs to access policies; its owner may change it at any time.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        policies: Mapping[str, str],
        faults: Faults,
        *,
        tenant_id: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifier = verifier
        self._policies = policies
        self._faults = faults
        self._tenant_id = tenant_id
        self._clock = clock

    def judge(self, user: str, token: str, node: int = 1) -> Verdict:
        """Judge a user name and token at a node. A refusal on demand counts one of its times."""
        claims = self._verifier.claims(token)
        if isinstance(claims, str):
            return Verdict(claims, user)
        object_id = user.lower()
        reason = refusal(claims, user=user, tenant_id=self._tenant_id, now=self._clock())
        if reason is None:
            if object_id not in self._policies:
                reason = "no access policy assignment"
            else:
                reason = self._on_demand(object_id, node)
        expires = claims.get("exp")
        return Verdict(
            reason,
            user if reason else object_id,
            uti=claims.get("uti"),
            expires_on=float(expires) if isinstance(expires, (int, float)) else None,
        )

    def _on_demand(self, object_id: str, node: int) -> str | None:
        """Why an identity with a good token is refused all the same, if it is."""
        meets = self._faults.meeting(node)
        if any(object_id in each.revoked for each in meets):
            return "revoked"
        if any(each.refusals.take() for each in meets):
            return "refused on demand"
        return None
