"""What the installed redis-py can do: found out by looking for the thing, not at the version.

The supported range, 5.3 to 8.x, spans three majors. Code that needs something which is not in all
of them asks here, and where it is the user who asked for it, says which version brought it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import redis.asyncio
from redis._parsers.hiredis import _AsyncHiredisParser

from ..errors import ConfigurationError

__all__ = ["CAPABILITIES", "Capability", "check_keywords", "has"]


class Capability(NamedTuple):
    """One thing that a redis-py can do or not."""

    present: bool
    since: str
    """The first of the versions that we test with which has it."""
    what: str


_KEYWORDS = inspect.signature(redis.asyncio.Redis.__init__).parameters


def _module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even its parent is there
        return False


CAPABILITIES: Final[Mapping[str, Capability]] = MappingProxyType(
    {
        "resp3_pushes": Capability(
            hasattr(_AsyncHiredisParser, "handle_push_response"),
            "6.4",
            "RESP3 push messages through redis-py's parser on hiredis, and its handlers for them",
        ),
        "metrics": Capability(
            _module("redis.asyncio.observability"), "7.4", "metrics of redis.observability"
        ),
        "maintenance_notifications": Capability(
            "maint_notifications_config" in _KEYWORDS,
            "8.1",
            "maintenance notifications for asyncio clients",
        ),
        "legacy_responses": Capability(
            "legacy_responses" in _KEYWORDS,
            "8.1",
            "RESP3 by default, and the shape of replies apart from it (legacy_responses=)",
        ),
        "himport": Capability(_module("redis.himport"), "8.1", "HIMPORT and its field sets"),
        "keyspace_notifications": Capability(
            _module("redis.asyncio.keyspace_notifications"), "8.1", "keyspace_notifications()"
        ),
    }
)
"""By name; the names are also what tests are marked with."""

_KEYWORD_OF: Final = {
    "legacy_responses": "legacy_responses",
    "maint_notifications_config": "maintenance_notifications",
}


def has(name: str) -> bool:
    """Whether the installed redis-py has the capability ``name``."""
    return CAPABILITIES[name].present


def check_keywords(options: Mapping[str, Any]) -> None:
    """Refuse keywords of redis-py's that only a later version knows, and say which."""
    for keyword, name in _KEYWORD_OF.items():
        capability = CAPABILITIES[name]
        if keyword in options and not capability.present:
            raise ConfigurationError(
                f"{keyword}= needs redis-py {capability.since} ({capability.what}); this is "
                f"{redis.__version__}: upgrade it, or leave the keyword out"
            )
