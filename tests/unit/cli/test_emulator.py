"""What ``aioentra-redis emulator`` prints, made from details of no real emulator."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from aioentra_redis.cli._emulator import CREDENTIALS, as_document, as_text
from aioentra_redis.emulator import Identity
from aioentra_redis.emulator._environment import KINDS, Kind, environ
from aioentra_redis.emulator._records import StartDetails

DETAILS = StartDetails(
    url="rediss://localhost:10000",
    plaintext_url="redis://127.0.0.1:10001",
    authority="https://localhost:8443",
    managed_identity_url="http://127.0.0.1:8080",
    app_service_url="http://127.0.0.1:8080/msi/token",
    identity_header="header",
    control_path="/a folder/control.sock",
    directory="/a folder",
    ca_file="/a folder/ca.pem",
    ca_bundle="/a folder/ca-bundle.pem",
    federated_token_file="/a folder/federated-token",
    tenant_id="tenant",
    service_principal=Identity("client", "object", None, "it's secret", "/a folder/client.pem"),
    system_assigned=Identity("client-2", "object-2"),
    user_assigned=Identity("client-3", "object-3"),
    server_version="Valkey 9.1.2",
)


def exports(text: str) -> list[tuple[str, str]]:
    """Names and values of the ``export`` lines, as a shell reads them."""
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(words[0] == "export" and len(words) == 2 for words in lines)
    return [tuple(words[1].split("=", 1)) for words in lines]  # type: ignore[misc]


def test_it_says_what_it_is_for():
    assert "for development only" in as_text(DETAILS).lower()
    assert as_document(DETAILS)["purpose"] == "development only"


def test_everything_that_one_needs_is_there():
    text = as_text(DETAILS)
    for value in (
        DETAILS.url,
        DETAILS.plaintext_url,
        DETAILS.authority,
        DETAILS.managed_identity_url,
        DETAILS.ca_file,
        DETAILS.tenant_id,
        "client",
        "it's secret",
        "object",
        "Valkey 9.1.2",
    ):
        assert value in text
    for kind in KINDS:
        assert f"# {kind}: " in text


def test_every_kind_has_its_variables():
    assert set(exports(as_text(DETAILS))) == {
        item for kind in KINDS for item in environ(DETAILS, kind).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone_is_complete(kind: Kind):
    text = as_text(DETAILS, (kind,))
    assert dict(exports(text)) == environ(DETAILS, kind)
    assert [each for each in KINDS if f"# {each}: " in text] == [kind]


def test_a_shell_takes_all_of_it():
    script = (
        as_text(DETAILS, ("client-secret",))
        + 'printf "%s|%s" "$AZURE_CLIENT_SECRET" "$SSL_CERT_FILE"'
    )
    output = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert output.stdout == "it's secret|/a folder/ca-bundle.pem"


def test_colours_only_where_they_are_asked_for():
    assert "\x1b[" not in as_text(DETAILS)
    coloured = as_text(DETAILS, colour=True)
    assert "\x1b[" in coloured
    assert [line for line in coloured.splitlines() if line.startswith("export")]


def test_the_document_is_json_and_complete():
    document = json.loads(json.dumps(as_document(DETAILS)))
    assert document["client_id"] == "client"
    assert document["client_secret"] == "it's secret"
    assert document["ca_file"] == "/a folder/ca.pem"
    assert document["environment"] == {kind: environ(DETAILS, kind) for kind in KINDS}


def test_every_kind_names_its_credentials():
    assert set(CREDENTIALS) == set(KINDS)
