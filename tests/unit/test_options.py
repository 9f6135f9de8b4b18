"""The URL, the environment, and the rule about plaintext: tables and messages."""

from __future__ import annotations

import pytest

from aioentra_redis._options import (
    check_alone,
    check_host_for_plaintext,
    check_seconds,
    default_port,
    is_loopback,
    resolve_url,
)
from aioentra_redis.errors import ConfigurationError, InsecureConnectionError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://h:1", "rediss://h:1"),
        (" rediss://h:1/0?a=b ", "rediss://h:1/0?a=b"),
        ("redis://localhost:6379", "redis://localhost:6379"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("h:1", "rediss://h:1"),
        ("rediss://[::1]:7", "rediss://[::1]:7"),
        ("c.westeurope.redis.azure.net", "rediss://c.westeurope.redis.azure.net:10000"),
        ("C.Redis.Cache.Windows.Net", "rediss://C.Redis.Cache.Windows.Net:6380"),
        ("c.redis.cache.windows.net:", "rediss://c.redis.cache.windows.net:6380"),
        ("rediss://user@c.redis.azure.net/0", "rediss://user@c.redis.azure.net:10000/0"),
        ("c.redis.azure.net:1234", "rediss://c.redis.azure.net:1234"),
    ],
)
def test_urls(url: str, expected: str):
    assert resolve_url(url, {}) == expected


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("a.b.redis.azure.net", 10000),
        ("a.redis.chinacloudapi.cn", 10000),
        ("a.redis.usgovcloudapi.net", 10000),
        ("a.redis.cache.windows.net", 6380),
        ("a.redis.cache.chinacloudapi.cn", 6380),
        ("a.redis.cache.usgovcloudapi.net", 6380),
        ("redis.azure.net", None),
        ("a.redis.azure.net.evil.example", None),
    ],
)
def test_the_port_follows_from_the_suffix(host: str, port: int | None):
    assert default_port(host) == port


def test_the_environment_in_its_order():
    environ = {"REDIS_HOST": "h:1", "AZURE_REDIS_HOST": "a:2", "REDIS_URL": "rediss://u:3"}
    assert resolve_url(None, environ) == "rediss://u:3"
    del environ["REDIS_URL"]
    assert resolve_url(None, environ) == "rediss://a:2"
    environ["AZURE_REDIS_HOST"] = ""
    assert resolve_url(None, environ) == "rediss://h:1"
    assert resolve_url("x:9", environ) == "rediss://x:9"


@pytest.mark.parametrize(
    ("url", "environ", "says"),
    [
        (None, {}, ["no Redis URL", "REDIS_URL", "AZURE_REDIS_HOST", "REDIS_HOST", "rediss://"]),
        ("", {}, ["the URL is empty"]),
        ("http://h:1", {}, ["unknown scheme 'http'", "rediss://"]),
        ("rediss://", {}, ["names no host", "rediss://<host>:<port>"]),
        ("cache.example", {}, ["names no port", "'cache.example'", "10000", "6380"]),
        ("rediss://h:port", {}, ["the port 'port'", "65535"]),
        ("rediss://h:0", {}, ["the port '0'"]),
        ("rediss://h:99999", {}, ["the port '99999'"]),
        ("rediss://[::1", {}, ["can't be read"]),
        (None, {"REDIS_HOST": "rediss://h"}, ["environment variable REDIS_HOST names no port"]),
        ("rediss://u:s3cret@h:1", {}, ["holds a password", "redis.asyncio.Redis"]),
        ("rediss://h:1?password=s3cret", {}, ["holds a password"]),
    ],
)
def test_urls_that_are_refused(url: str | None, environ: dict[str, str], says: list[str]):
    with pytest.raises(ConfigurationError) as caught:
        resolve_url(url, environ)
    for text in says:
        assert text in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), "x", None, True])
def test_seconds_are_positive_numbers(value: object):
    with pytest.raises(ConfigurationError, match="recovery_timeout= is a number"):
        check_seconds(close_timeout=1.5, recovery_timeout=value)


@pytest.mark.parametrize("name", ["password", "credential_provider", "redis_connect_func"])
def test_a_token_source_signs_in_alone(name: str):
    check_alone({name: None})
    with pytest.raises(ConfigurationError, match=f"{name}= can't be combined"):
        check_alone({name: "x"})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("cache.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::1%lo", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.example", False),
        ("cache.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool):
    assert is_loopback(host) is expected
    if expected:
        check_host_for_plaintext(host, allow_plaintext=False)
    else:
        with pytest.raises(InsecureConnectionError) as caught:
            check_host_for_plaintext(host, allow_plaintext=False)
        for text in (f"to {host} in clear", "nothing was sent", "rediss://", "allow_plaintext"):
            assert text in str(caught.value)
    check_host_for_plaintext(host, allow_plaintext=True)
