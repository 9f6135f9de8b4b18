"""The rules about TLS: which keywords and contexts are too weak, and what is done about them."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from aioentra_redis._tls import check_context, check_tls, strengthen, weaknesses_of
from aioentra_redis.errors import ConfigurationError, InsecureConnectionError

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ssl_check_hostname": True},
        {"ssl_check_hostname": None},
        {"ssl_cert_reqs": "required"},
        {"ssl_cert_reqs": ssl.CERT_REQUIRED},
        {"ssl_cert_reqs": "REQUIRED"},
        {"ssl_ciphers": None},
        {"ssl_ciphers": "ECDHE+AESGCM"},
        {"ssl_include_verify_flags": [ssl.VERIFY_X509_STRICT]},
        {"ssl_include_verify_flags": None},
        {"ssl_min_version": ssl.TLSVersion.TLSv1_3},
        {"ssl_min_version": None},
    ],
)
def test_strong_enough(options: dict[str, Any]):
    assert check_tls(options, allow_insecure_tls=False) == frozenset()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ssl_check_hostname": False}, "ssl_check_hostname=False"),
        ({"ssl_cert_reqs": "none"}, "ssl_cert_reqs=none"),
        ({"ssl_cert_reqs": "NONE"}, "ssl_cert_reqs=NONE"),
        ({"ssl_cert_reqs": "optional"}, "ssl_cert_reqs=optional"),
        ({"ssl_cert_reqs": None}, "ssl_cert_reqs=None"),
        ({"ssl_cert_reqs": ssl.CERT_NONE}, "ssl_cert_reqs="),
        ({"ssl_min_version": ssl.TLSVersion.TLSv1_1}, "below TLS 1.2"),
        ({"ssl_min_version": ssl.TLSVersion.MINIMUM_SUPPORTED}, "below TLS 1.2"),
        ({"ssl_ciphers": "ALL:@SECLEVEL=0"}, "security level 0"),
        ({"ssl_include_verify_flags": [ssl.VERIFY_ALLOW_PROXY_CERTS]}, "VERIFY_ALLOW_PROXY_CERTS"),
    ],
)
def test_too_weak(options: dict[str, Any], says: str):
    with pytest.raises(InsecureConnectionError) as caught:
        check_tls(options, allow_insecure_tls=False)
    for text in (says, "could read the token", "ssl_ca_certs=", "allow_insecure_tls=True"):
        assert text in str(caught.value)
    with pytest.warns(RuntimeWarning, match="insecure TLS allowed"):
        assert check_tls(options, allow_insecure_tls=True) == frozenset(options)


def test_every_weakness_is_named():
    with pytest.raises(InsecureConnectionError, match=r"ssl_check_hostname.* and ssl_cert_reqs"):
        check_tls({"ssl_check_hostname": False, "ssl_cert_reqs": "none"}, allow_insecure_tls=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ssl_cert_reqs": "maybe"}, "ssl_cert_reqs= is 'required', not 'maybe'"),
        ({"ssl_cert_reqs": [1]}, "ssl_cert_reqs= is 'required'"),
        ({"ssl_min_version": "771"}, "ssl_min_version= is an ssl.TLSVersion, not '771'"),
        ({"ssl_ciphers": "nonsense"}, "ssl_ciphers='nonsense' is no list of ciphers"),
        ({"ssl_ciphers": 7}, "ssl_ciphers=7 is no list of ciphers"),
    ],
)
def test_what_redis_py_would_stumble_over_is_named(options: dict[str, Any], says: str):
    for allowed in (False, True):
        with pytest.raises(ConfigurationError) as caught:
            check_tls(options, allow_insecure_tls=allowed)
        assert says in str(caught.value)
        assert not isinstance(caught.value, InsecureConnectionError)


# ------------------------------------------------------------------------------- contexts

WEAKER: dict[str, Any] = {
    "ssl_check_hostname": lambda context: setattr(context, "check_hostname", False),
    "ssl_cert_reqs": lambda context: (
        setattr(context, "check_hostname", False),
        setattr(context, "verify_mode", ssl.CERT_NONE),
    ),
    "ssl_min_version": lambda context: setattr(
        context, "minimum_version", ssl.TLSVersion.MINIMUM_SUPPORTED
    ),
    "ssl_ciphers": lambda context: context.set_ciphers("ALL:@SECLEVEL=0"),
    "ssl_include_verify_flags": lambda context: setattr(
        context, "verify_flags", context.verify_flags | ssl.VERIFY_ALLOW_PROXY_CERTS
    ),
}
"""What each keyword does to a context."""


@pytest.fixture
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def test_a_context_that_keeps_the_rules(context: ssl.SSLContext):
    assert weaknesses_of(context) == {}
    check_context(context, "cache:1", allow_insecure_tls=False)


@pytest.mark.parametrize("keyword", WEAKER)
def test_a_weak_context_is_refused_unless_lifted(context: ssl.SSLContext, keyword: str):
    WEAKER[keyword](context)
    assert keyword in weaknesses_of(context)
    with pytest.raises(InsecureConnectionError, match="at cache:1: whoever sits between") as caught:
        check_context(context, "cache:1", allow_insecure_tls=False)
    assert "was not sent" in str(caught.value)
    with pytest.warns(RuntimeWarning, match="insecure TLS allowed: .* at cache:1"):
        check_context(context, "cache:1", allow_insecure_tls=True)
    check_context(context, "cache:1", allow_insecure_tls=False, lifted={keyword})


@pytest.mark.parametrize("keyword", ["ssl_check_hostname", "ssl_cert_reqs", "ssl_min_version"])
def test_what_can_be_mended_is_unless_lifted(context: ssl.SSLContext, keyword: str):
    WEAKER[keyword](context)
    before = weaknesses_of(context)
    strengthen(context, lifted={keyword})
    assert weaknesses_of(context) == before
    strengthen(context)
    assert weaknesses_of(context) == {}


def test_certificates_of_no_matter_do_not_lift_the_version(context: ssl.SSLContext):
    WEAKER["ssl_cert_reqs"](context)
    WEAKER["ssl_min_version"](context)
    strengthen(context, lifted={"ssl_cert_reqs"})
    assert weaknesses_of(context, lifted={"ssl_cert_reqs"}) == {}
    assert context.verify_mode is ssl.CERT_NONE


def test_ciphers_and_flags_are_left_to_the_check(context: ssl.SSLContext):
    WEAKER["ssl_ciphers"](context)
    WEAKER["ssl_include_verify_flags"](context)
    strengthen(context)
    assert set(weaknesses_of(context)) == {"ssl_ciphers", "ssl_include_verify_flags"}
