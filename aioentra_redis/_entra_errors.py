"""What a credential's failure means, and what to do about it.

Works on types, attributes and texts of any exception, so it needs no import of azure. Microsoft
warns against depending on its error codes: here they select advice, and whether trying again at
once can help. The source itself never gives up on account of a code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from ._redaction import mentions_token, scrub, without_tracebacks
from .errors import TokenAcquisitionError

__all__ = ["Subject", "explain", "timed_out"]


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asked for which token; for messages."""

    label: str
    resource: str
    tenant_id: str | None = None
    client_id: str | None = None

    def __str__(self) -> str:
        known = [("tenant", self.tenant_id), ("client", self.client_id)]
        details = ", ".join(f"{name} {value}" for name, value in known if value)
        return f"{self.label} ({details})" if details else self.label


_CLOCK = "Set this machine's clock: the assertion's times are not valid for the identity provider."
_TENANT = "Check the tenant ID, and that authority= selects the right cloud."
_ADVICE = {
    "AADSTS7000215": "The client secret is wrong. A common slip is to copy the Secret ID from the"
    " portal: the secret is the column 'Value', shown only when it is created.",
    "AADSTS7000222": "The client secret has expired. Add a new one to the app registration.",
    "AADSTS700016": "There is no such application in this tenant. Check the client ID and the"
    " tenant ID.",
    "AADSTS90002": _TENANT,
    "AADSTS900023": _TENANT,
    "AADSTS500011": "This tenant does not know the resource. Check scopes= for typing errors; the"
    " default fits Azure's Redis services.",
    "AADSTS1002012": "The scope must end in '/.default' for this kind of credential.",
    "AADSTS70011": "The scope is not valid. Check scopes=; the default fits Azure's Redis"
    " services.",
    "AADSTS700027": "The certificate was not accepted: upload it to the app registration, and make"
    " sure that its private key belongs to it.",
    "AADSTS700024": _CLOCK,
    "AADSTS500133": _CLOCK,
    "AADSTS700213": "No federated identity credential of the application matches the presented"
    " token: compare its issuer, subject and audience.",
    "AADSTS7000112": "The application is disabled in this tenant: an administrator can enable it.",
    "AADSTS7000229": "The application has no service principal in this tenant: create one with"
    " 'az ad sp create --id <client ID>'.",
    "AADSTS53003": "A conditional access policy blocks this sign-in: ask the tenant's"
    " administrator.",
    "AADSTS65001": "Nobody has consented to this application: an administrator can grant consent.",
    "AADSTS90038": "The tenant lives in a national cloud: pass its login host as authority=.",
}
_PERMANENT_OAUTH = frozenset(
    {
        "access_denied",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_resource",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""OAuth's names (RFC 6749, 5.2) for what the same request will run into again."""
_NO_IMDS = "no response from the imds endpoint"
_UNASSIGNED = ("no identity has been assigned", "identity has not been assigned")
_CHAIN = "failed to retrieve a token from the included credentials"
_FILE_FAULTS = (FileNotFoundError, PermissionError, IsADirectoryError)
_LOCAL_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ImportError, *_FILE_FAULTS)
"""A wrong argument or a missing file, as opposed to a bad minute of the network."""


def explain(error: Exception, subject: Subject) -> TokenAcquisitionError:
    """Turn whatever a credential raised into an error for people; it is returned, not raised.

    ``error`` becomes the cause, without its frames; unless it mentions a secret, then it goes.
    """
    if isinstance(error, TokenAcquisitionError):
        return without_tracebacks(error)
    status, retry_after = _http_facts(error)
    text = scrub(str(getattr(error, "message", "") or _safe_str(error)))
    aadsts = re.search(r"AADSTS\d+", text)
    named = re.search(r"\(([a-z]+(?:_[a-z]+)+)\)", text)
    oauth = named[1] if named else None
    code = aadsts[0] if aadsts else oauth
    reason = _reason(text, error).rstrip(". ")
    advice = _advice(code, text, status, error)
    explained = TokenAcquisitionError(
        f"no token for {subject.resource} from {subject}: {reason}. {advice}".rstrip(),
        code=code,
        transient=_is_transient(code, oauth, text, status, error),
        retry_after=retry_after,
    )
    if not mentions_token(error):
        explained.__cause__ = without_tracebacks(error)
    explained.__suppress_context__ = True
    return explained


def timed_out(seconds: float, subject: Subject, *, still_running: bool) -> TokenAcquisitionError:
    """The error for an attempt that had no answer within ``seconds``."""
    fate = (
        "the call can't be ended; no second one is started meanwhile"
        if still_running
        else "the call was cancelled"
    )
    return TokenAcquisitionError(
        f"no token for {subject.resource} from {subject}: no answer within {seconds:g} s, and"
        f" {fate}. Check that the identity provider can be reached (proxy, firewall, DNS), or"
        " allow more with TokenRefreshConfig(request_timeout=...)."
    )


def _reason(text: str, error: Exception) -> str:
    """The provider's own words: the first line, without correlation noise."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if _CHAIN in text:
        tried = [line for line in lines if re.match(r"\w+Credential: ", line)]
        return "no member of its chain has one. " + " | ".join(each[:160] for each in tried[:8])
    reason = re.split(r"\s*(?:Trace ID|Correlation ID|Timestamp):", lines[0])[0]
    inner = re.match(r"Microsoft Entra ID error '\([a-z_]+\)\s*(.*?)'?$", reason)
    reason = (inner[1] if inner else reason)[:300]
    return reason if len(reason.split()) > 2 else f"{type(error).__name__}: {reason}"


def _advice(code: str | None, text: str, status: int | None, error: Exception) -> str:
    """The remedy, or an empty string where we have none to offer."""
    if code in _ADVICE:
        return _ADVICE[code]
    lowered = text.lower()
    if _CHAIN in text:
        return (
            "Sign in for development ('az login'), give the service a managed identity, or name"
            " the credential to use."
        )
    if _NO_IMDS in lowered or "unreachable" in lowered:
        return (
            "Either this is not a machine in Azure, or it has no managed identity: enable one, or"
            " use another credential."
        )
    if any(words in lowered for words in _UNASSIGNED):
        return (
            "Assign the identity to this resource. With several user-assigned identities, say"
            " which with client_id=, object_id= or resource_id=."
        )
    if "az login" in lowered or "azd auth login" in lowered or "not found on path" in lowered:
        return "Install the tool and sign in with it ('az login')."
    if isinstance(error, _FILE_FAULTS):
        return "Check that the file exists and may be read by this process."
    if status == 429:
        return "The identity provider asks for fewer requests: share one source among clients."
    if status is not None and status >= 500:
        return "The identity provider has a problem of its own; trying again helps."
    if _is_network_fault(error):
        return "Check that the identity provider can be reached (proxy, firewall, DNS)."
    return ""


def _is_transient(
    code: str | None, oauth: str | None, text: str, status: int | None, error: Exception
) -> bool:
    """Whether trying again, unchanged, can help."""
    if status is not None and (status == 429 or status >= 500):
        return True
    if code in _ADVICE or oauth in _PERMANENT_OAUTH:
        return False
    lowered = text.lower()
    if any(words in lowered for words in _UNASSIGNED):
        return False
    if _CHAIN in text or _NO_IMDS in lowered or "timed out" in lowered:
        return True  # IMDS is late on machines that have just booted
    if any(kind.__name__ == "CredentialUnavailableError" for kind in type(error).__mro__):
        return False
    return not isinstance(error, _LOCAL_FAULTS)


def _is_network_fault(error: Exception) -> bool:
    names = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    return bool(names & {"ServiceRequestError", "ServiceResponseError", "OSError", "ClientError"})


def _http_facts(error: Exception) -> tuple[int | None, float | None]:
    """Status and Retry-After in seconds of the HTTP response behind ``error``, if any."""
    for each in _causes(error):
        response = getattr(each, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            get = getattr(getattr(response, "headers", None), "get", None)
            return status, _seconds(get("Retry-After")) if callable(get) else None
    return None, None


def _seconds(retry_after: object) -> float | None:
    """Read the header's two forms: a number of seconds, or a date (RFC 9110, 10.2.3)."""
    if not isinstance(retry_after, str):
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _safe_str(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # somebody else's __str__
        return type(error).__name__
