"""What each error says about where a command belongs."""

from __future__ import annotations

import pytest
from redis import exceptions as redis_exceptions

from aioentra_redis._cluster._addresses import Advertised, Refused
from aioentra_redis._cluster._redirects import Action, judge
from aioentra_redis.errors import (
    CommandRefusedError,
    CommandTimeoutError,
    ConnectError,
    ConnectionLostError,
    MaybeExecutedError,
    SignInRefusedError,
    TokenExpiredError,
)


@pytest.mark.parametrize(
    ("text", "to"),
    [
        ("3999 10.0.0.9:7001", Advertised("10.0.0.9", 7001)),
        ("3999 :7001", Advertised("", 7001)),
        ("3999 ::1:7001", Advertised("::1", 7001)),
        ("3999 node.example:7001", Advertised("node.example", 7001)),
    ],
)
def test_redirections_say_where_to(text: str, to: Advertised):
    assert judge(redis_exceptions.MovedError(text)) == (Action.MOVED, to, 3999)
    assert judge(redis_exceptions.AskError(text)) == (Action.ASK, to, 3999)


def test_a_redirection_to_a_host_that_nobody_knows():
    assert isinstance(judge(redis_exceptions.MovedError("3999 ?:7001")).to, Refused)


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (redis_exceptions.TryAgainError("TRYAGAIN"), Action.AGAIN),
        (redis_exceptions.BusyLoadingError("LOADING"), Action.AGAIN),
        (redis_exceptions.ClusterDownError("CLUSTERDOWN"), Action.REFRESH),
        (redis_exceptions.MasterDownError("MASTERDOWN"), Action.REFRESH),
        (redis_exceptions.ReadOnlyError("READONLY"), Action.REFRESH),
        (redis_exceptions.SlotNotCoveredError("slot"), Action.REFRESH),
        (ConnectionLostError("lost"), Action.LOST),
        (ConnectError("refused", stage="tcp"), Action.LOST),
        (redis_exceptions.ConnectionError("of a dedicated one"), Action.LOST),
        (MaybeExecutedError("it may have run"), Action.RAISE),
        (SignInRefusedError("WRONGPASS", stage="auth"), Action.RAISE),
        (TokenExpiredError("expired"), Action.RAISE),
        (redis_exceptions.AuthenticationError("NOAUTH"), Action.RAISE),
        (redis_exceptions.AuthorizationError("ACL"), Action.RAISE),
        (redis_exceptions.MaxConnectionsError("Too many connections"), Action.RAISE),
        (redis_exceptions.ConnectionError("No connection available."), Action.RAISE),
        (redis_exceptions.ResponseError("WRONGTYPE"), Action.RAISE),
        (redis_exceptions.NoPermissionError("NOPERM"), Action.RAISE),
        (redis_exceptions.DataError("None"), Action.RAISE),
        (CommandTimeoutError("late"), Action.RAISE),
        (CommandRefusedError("MULTI"), Action.RAISE),
    ],
)
def test_what_to_do_about_an_error(error: Exception, action: Action):
    assert judge(error).action is action
