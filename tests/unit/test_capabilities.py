"""What the installed redis-py can do, and what is said where it can't."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.asyncio import ConnectionPool

from aioentra_redis import EntraRedis
from aioentra_redis._redis_py import CAPABILITIES, check_keywords, default_to_resp3, has
from aioentra_redis._redis_py import _capabilities as capabilities
from aioentra_redis.errors import ConfigurationError

VERSION = tuple(int(part) for part in redis.__version__.split(".")[:2])


@pytest.mark.parametrize("name", CAPABILITIES)
def test_each_is_there_from_the_version_on_that_is_named(name: str):
    """``since`` is the first of 5.3, 6.4, 7.4 and 8.1 with it; found by looking, not by number."""
    since = tuple(int(part) for part in CAPABILITIES[name].since.split("."))
    assert has(name) is (since <= VERSION)


@pytest.mark.parametrize("keyword", ["legacy_responses", "maint_notifications_config"])
def test_a_keyword_of_a_later_redis_py_is_refused_by_name_and_version(
    monkeypatch: pytest.MonkeyPatch, keyword: str
):
    absent = {name: it._replace(present=False) for name, it in CAPABILITIES.items()}
    monkeypatch.setattr(capabilities, "CAPABILITIES", absent)
    for make in (
        lambda: EntraRedis(host="localhost", **{keyword: None}),
        lambda: EntraRedis.from_url("redis://localhost", **{keyword: None}),
    ):
        with pytest.raises(ConfigurationError, match=rf"{keyword}= needs redis-py 8.1.*upgrade"):
            make()


@pytest.mark.capability("legacy_responses")
@pytest.mark.capability("maintenance_notifications")
def test_a_redis_py_that_knows_them_gets_them():
    check_keywords({"legacy_responses": False, "maint_notifications_config": None})
    pool = EntraRedis(host="localhost", legacy_responses=False).connection_pool
    assert pool.connection_kwargs["legacy_responses"] is False


@pytest.mark.parametrize("protocol", [None, 2, 3])
def test_resp3_is_asked_for_unless_the_user_chose(protocol: int | None):
    """Where redis-py asks for it by itself the protocol stays unnamed: replies keep their shape."""
    kwargs: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
    default_to_resp3(kwargs)
    expected = protocol or (None if has("legacy_responses") else 3)
    assert kwargs.get("protocol") == expected


@pytest.mark.parametrize("protocol", [2, 3])
def test_callbacks_are_those_of_redis_pys_own_client(protocol: int):
    ours = EntraRedis(host="localhost", protocol=protocol)
    theirs = redis.asyncio.Redis(host="localhost", protocol=protocol)
    assert {name: _code(it) for name, it in ours.response_callbacks.items()} == {
        name: _code(it) for name, it in theirs.response_callbacks.items()
    }


def test_by_default_replies_look_as_redis_py_shapes_them_for_resp3():
    """redis-py before 8 has one shape per protocol; from 8 on the wire's protocol is its affair."""
    ours = EntraRedis(host="localhost")
    theirs = redis.asyncio.Redis(host="localhost", protocol=None if has("legacy_responses") else 3)
    assert {name: _code(it) for name, it in ours.response_callbacks.items()} == {
        name: _code(it) for name, it in theirs.response_callbacks.items()
    }


def _code(callback: Any) -> Any:
    return getattr(callback, "__code__", callback)


def test_client_side_caching_is_refused_as_redis_pys_asyncio_client_refuses_it():
    """Its options are the synchronous client's; an answer out of a cache would never be ours."""
    for option in ("cache", "cache_config"):
        for kind in (redis.asyncio.Redis, EntraRedis):
            with pytest.raises(TypeError, match=option):
                kind(host="localhost", **{option: object()})
        with pytest.raises(TypeError, match=option):
            EntraRedis(connection_pool=ConnectionPool(**{option: object()}))
