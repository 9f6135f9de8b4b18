"""An asyncio Redis client that signs in with Microsoft Entra ID tokens and stays signed in.

``connect`` is the way in. ``EntraRedis`` is the client it returns, a ``redis.asyncio.Redis``;
``TokenSource`` is where tokens come from, to be shared between clients.
"""

from ._adapters import EntraCredentialProvider, entra_kwargs
from ._client import EntraRedis
from ._cluster import EntraRedisCluster
from ._connect import connect
from ._event_streams import EventStream
from ._events import (
    AcquisitionEnded,
    AuthTrigger,
    BreakerClosed,
    BreakerOpened,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    ConnectionState,
    ConnectionStatus,
    Event,
    EventsDropped,
    MaintenanceAnnounced,
    MaintenanceKind,
    MessagesMayBeMissing,
    Reauthenticated,
    ReauthenticationFailed,
    RefreshFailed,
    SubscriptionHandedOver,
    TaskRestarted,
    TokenPublished,
    TokenState,
    TokenStateChanged,
    TokenStatus,
)
from ._health import Health, HealthState
from ._schedule import RetryConfig, TokenRefreshConfig
from ._source import TokenSource
from ._token import Token
from .errors import (
    ClosedError,
    ClusterModeError,
    ClusterUnreachableError,
    CommandRefusedError,
    CommandTimeoutError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    EntraRedisError,
    ForkedError,
    IdentityChangedError,
    InsecureConnectionError,
    InvalidTokenError,
    LifecycleError,
    MaybeExecutedError,
    SignInRefusedError,
    TokenAcquisitionError,
    TokenError,
    TokenExpiredError,
    WrongLoopError,
)

__all__ = [
    "AcquisitionEnded",
    "AuthTrigger",
    "BreakerClosed",
    "BreakerOpened",
    "ClosedError",
    "ClusterModeError",
    "ClusterUnreachableError",
    "CommandRefusedError",
    "CommandTimeoutError",
    "ConfigurationError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionClosed",
    "ConnectionLostError",
    "ConnectionOpened",
    "ConnectionReplaced",
    "ConnectionState",
    "ConnectionStatus",
    "EntraCredentialProvider",
    "EntraRedis",
    "EntraRedisCluster",
    "EntraRedisError",
    "Event",
    "EventStream",
    "EventsDropped",
    "ForkedError",
    "Health",
    "HealthState",
    "IdentityChangedError",
    "InsecureConnectionError",
    "InvalidTokenError",
    "LifecycleError",
    "MaintenanceAnnounced",
    "MaintenanceKind",
    "MaybeExecutedError",
    "MessagesMayBeMissing",
    "Reauthenticated",
    "ReauthenticationFailed",
    "RefreshFailed",
    "RetryConfig",
    "SignInRefusedError",
    "SubscriptionHandedOver",
    "TaskRestarted",
    "Token",
    "TokenAcquisitionError",
    "TokenError",
    "TokenExpiredError",
    "TokenPublished",
    "TokenRefreshConfig",
    "TokenSource",
    "TokenState",
    "TokenStateChanged",
    "TokenStatus",
    "WrongLoopError",
    "connect",
    "entra_kwargs",
]

__version__ = "0.1.0.dev0"
