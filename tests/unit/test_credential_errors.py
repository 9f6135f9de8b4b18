"""What failed credentials say, and what they do not."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from types import SimpleNamespace

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from support.token_fakes import CANARY, jwt

from aioentra_redis._entra_errors import Subject, explain
from aioentra_redis._redaction import Secret, again, mentions_token, scrub, without_tracebacks
from aioentra_redis.errors import TokenAcquisitionError

RAW = jwt({"oid": "o"})


SUBJECT = Subject("ClientSecretCredential", "https://redis.azure.com", "tenant-1", "client-1")


# ------------------------------------------------------------------------------------ errors


def entra(code: str, text: str = "The reason.", error: str = "invalid_client") -> Exception:
    """As azure-identity words what the authority answered."""
    noise = " Trace ID: 1 Correlation ID: 2 Timestamp: 2026-01-01 00:00:00Z"
    return ClientAuthenticationError(
        message=f"Microsoft Entra ID error '({error}) {code}: {text}{noise}'"
    )


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AADSTS7000215", "Secret ID"),
        ("AADSTS7000222", "expired"),
        ("AADSTS700016", "client ID"),
        ("AADSTS90002", "tenant ID"),
        ("AADSTS900023", "tenant ID"),
        ("AADSTS500011", "scopes="),
        ("AADSTS1002012", ".default"),
        ("AADSTS70011", "scopes="),
        ("AADSTS700027", "upload"),
        ("AADSTS700024", "clock"),
        ("AADSTS500133", "clock"),
        ("AADSTS700213", "federated"),
        ("AADSTS7000112", "disabled"),
        ("AADSTS7000229", "az ad sp create"),
        ("AADSTS53003", "conditional access"),
        ("AADSTS65001", "consent"),
        ("AADSTS90038", "authority="),
    ],
)
def test_codes_get_a_remedy(code: str, remedy: str):
    cause = entra(code)
    error = explain(cause, SUBJECT)
    assert (error.code, error.transient) == (code, False)
    for part in (remedy, code, "The reason", "tenant-1", "client-1", "https://redis.azure.com"):
        assert part in str(error)
    assert "Trace ID" not in str(error)
    assert error.__cause__ is cause


UNAVAILABLE = "ManagedIdentityCredential authentication unavailable"


@pytest.mark.parametrize(
    ("cause", "transient", "says"),
    [
        (entra("AADSTS90033", error="temporarily_unavailable"), True, "AADSTS90033"),
        (entra("AADSTS12345", error="unauthorized_client"), False, "AADSTS12345"),
        (CredentialUnavailableError(f"{UNAVAILABLE}, no response from the IMDS endpoint."), True,
         "not a machine in Azure"),
        (CredentialUnavailableError(f"{UNAVAILABLE}. No identity has been assigned to this"
         " resource."), False, "Assign the identity"),
        (CredentialUnavailableError(f"{UNAVAILABLE}. The requested identity has not been assigned"
         " to this resource."), False, "client_id="),
        (CredentialUnavailableError("Azure CLI not found on path"), False, "az login"),
        (CredentialUnavailableError("Timed out waiting for Azure CLI"), True, "Timed out"),
        (ServiceRequestError("Cannot connect to host login:443"), True, "proxy"),
        (ConnectionRefusedError(111, "refused"), True, "proxy"),
        (FileNotFoundError(2, "No such file", "cert.pem"), False, "cert.pem"),
        (TypeError("bad argument x"), False, "bad argument"),
        (ValueError(""), False, "ValueError"),
        (RuntimeError("x"), True, "RuntimeError: x"),
    ],
)  # fmt: skip
def test_other_failures(cause: Exception, transient: bool, says: str):
    error = explain(cause, SUBJECT)
    assert error.transient is transient
    assert says in str(error)


def test_a_chain_tells_what_each_member_said():
    text = (
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\n"
        "Attempted credentials:\n\tEnvironmentCredential: not configured.\nVisit https://x\n"
        "\tAzureCliCredential: Azure CLI not found on path\nTo mitigate this issue, ..."
    )
    error = explain(ClientAuthenticationError(message=text), Subject("DefaultAzureCredential", "r"))
    assert "EnvironmentCredential: not configured" in str(error)
    assert "AzureCliCredential: Azure CLI" in str(error)
    assert "To mitigate" not in str(error)
    assert "az login" in str(error)
    assert error.transient


@pytest.mark.parametrize(
    ("status", "header", "transient", "wait"),
    [
        (429, "17", True, 17),
        (503, None, True, None),
        (400, None, True, None),
        (429, "soon", True, None),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT", True, 0),
    ],
)
def test_what_the_response_says(status: int, header: str | None, transient: bool, wait):
    headers = {"Retry-After": header} if header else {}
    body = json.dumps({"access_token": RAW})
    response = SimpleNamespace(
        status_code=status, reason="r", headers=headers, text=lambda: body, request="secret"
    )
    cause = ClientAuthenticationError(message="Operation returned it", response=response)
    assert CANARY in str(cause)  # azure-core appends the body to its text
    error = explain(cause, SUBJECT)
    assert (error.transient, error.retry_after) == (transient, wait)
    assert CANARY not in "".join(traceback.format_exception(error))


# ------------------------------------------------------------------------------------ redaction


def test_tracebacks_go_from_everything_that_hangs_on_an_error():
    def fail() -> None:
        secret = RAW  # noqa: F841
        try:
            try:
                raise KeyError("inner")
            except KeyError:
                raise ServiceRequestError("middle")  # noqa: B904 - AzureError keeps exc_info
        except ServiceRequestError as error:
            raise ExceptionGroup("outer", [ValueError("member")]) from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    error = caught.value
    error.__context__.__context__.__context__ = error  # a circle
    assert without_tracebacks(error) is error
    middle = error.__cause__
    for each in (error, middle, middle.__context__, middle.exc_value, error.exceptions[0]):
        assert each.__traceback__ is None
    assert middle.exc_traceback is None


def test_an_error_that_mentions_a_token_is_no_cause():
    for text in (f"bad {RAW}", "{'access_token': 'opaque'}", "client_secret=hunter2 x"):
        assert mentions_token(RuntimeError(text))
        error = explain(RuntimeError(text), SUBJECT)
        assert error.__cause__ is None
        assert not mentions_token(error)
    assert not mentions_token(entra("AADSTS7000215"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a {RAW} b", "a <redacted token> b"),
        ('{"access_token": "x y", "n": 1}', '{"access_token": <redacted>, "n": 1}'),
        ("client_secret=abc&x=1", "client_secret=<redacted>&x=1"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_scrub(text: str, expected: str):
    assert scrub(text) == expected


def test_secrets_and_twins():
    secret = Secret("x")
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert secret == Secret("x") != Secret("y")
    assert hash(secret) == hash(Secret("x"))
    assert not Secret("")
    assert not hasattr(secret, "__dict__")
    error = TokenAcquisitionError("m", code="c", transient=False, retry_after=3)
    error.__cause__ = OSError("x")
    for twin in (again(error), pickle.loads(pickle.dumps(error))):
        assert twin is not error
        assert (str(twin), twin.code, twin.transient, twin.retry_after) == ("m", "c", False, 3)
    assert again(error).__cause__ is error.__cause__
