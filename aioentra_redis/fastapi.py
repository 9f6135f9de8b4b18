"""A lifespan and a dependency for FastAPI.

::

    from fastapi import FastAPI
    from aioentra_redis.fastapi import Redis, lifespan

    app = FastAPI(lifespan=lifespan("rediss://cache.westeurope.redis.azure.net:10000"))

    @app.get("/greeting")
    async def greeting(redis: Redis) -> str | None:
        return await redis.get("greeting")

The client lives in the lifespan's state, not on ``app``: included routers and mounted applications
see it too, and two applications in one process don't share it by accident.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Literal, TypeAlias, cast

from fastapi import Depends

# FastAPI reads a dependency's signature at run time: this import is not for type checkers only.
from starlette.requests import HTTPConnection

from ._client import EntraRedis
from ._cluster import EntraRedisCluster
from ._connect import connect
from .errors import LifecycleError

__all__ = ["Redis", "RedisCluster", "client", "get_redis", "lifespan"]


def lifespan(
    url: str | None = None,
    *,
    name: str = "redis",
    cluster: bool | Literal["auto"] = False,
    **options: Any,
) -> Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Make a lifespan that connects when the application starts and closes when it ends.

    ``url`` and ``options`` are those of ``connect()``; an application that can't sign in does not
    start, and says why. ``name`` is the client's name in the lifespan's state. ``cluster`` is
    False unless said otherwise, so that the type of ``Redis`` is true; with True that of
    ``RedisCluster`` is.

    A lifespan of your own enters it and passes its state on::

        redis_lifespan = lifespan("rediss://...")

        @asynccontextmanager
        async def my_lifespan(app):
            async with redis_lifespan(app) as state, open_database() as database:
                yield {**state, "database": database}
    """

    options["cluster"] = cluster

    @asynccontextmanager
    async def redis_lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        # A lifespan may be run again (tests do so): each run gets a connect() of its own, which
        # can be entered once.
        async with connect(url, **options) as redis:
            yield {name: redis}

    return redis_lifespan


Dependency: TypeAlias = Callable[[HTTPConnection], Coroutine[Any, Any, EntraRedis]]


def client(name: str) -> Dependency:
    """Make a dependency for the client that ``lifespan(..., name=name)`` opened.

    For a second client: ``Queue = Annotated[EntraRedis, Depends(client("queue"))]``.
    """

    # HTTPConnection is what HTTP requests and WebSockets have in common. The dependency is
    # asynchronous because FastAPI would send a synchronous one through its thread pool.
    async def dependency(connection: HTTPConnection) -> EntraRedis:
        found = getattr(connection.state, name, None)
        if found is None:
            raise LifecycleError(_missing(name))
        return cast(EntraRedis, found)

    return dependency


def _missing(name: str) -> str:
    named = "" if name == "redis" else f", name={name!r}"
    return (
        f"there is no {name!r} in the application's lifespan state, so there is no client to hand"
        " to this route. The application needs the lifespan that opens it:\n\n"
        "    from aioentra_redis.fastapi import lifespan\n\n"
        f'    app = FastAPI(lifespan=lifespan("rediss://...:10000"{named}))\n\n'
        "If it has a lifespan of its own, enter ours in it and yield its state:\n\n"
        "    async with redis_lifespan(app) as state:\n"
        "        yield {**state}\n\n"
        "In tests, lifespans run only under `with TestClient(app) as client:`; httpx's"
        " ASGITransport doesn't run them at all."
    )


get_redis: Dependency = client("redis")
"""The dependency behind ``Redis``; override it in tests with ``app.dependency_overrides``."""

Redis = Annotated[EntraRedis, Depends(get_redis)]
"""Annotate a parameter of a route with this to get the client."""

RedisCluster = Annotated[EntraRedisCluster, Depends(get_redis)]
"""The same, where the lifespan was told ``cluster=True``."""
