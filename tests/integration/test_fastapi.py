"""The lifespan and the dependency, in applications served by Starlette's test client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

import aioentra_redis.fastapi
from aioentra_redis import EntraRedis, LifecycleError, TokenSource
from aioentra_redis.emulator import Emulator
from aioentra_redis.fastapi import Redis, RedisCluster, client, get_redis, lifespan

Queue = Annotated[EntraRedis, Depends(client("queue"))]


class FakeRedis:
    """Stands for a connected client: remembers how it was made and whether it is open."""

    def __init__(self, url: str | None, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        self.open = True

    async def get(self, key: str) -> str:
        return f"{key} of {self.url}"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeRedis]]:
    """Replace ``connect`` and list the clients it made; all must be closed at the end."""
    clients: list[FakeRedis] = []

    @asynccontextmanager
    async def connect(url: str | None = None, **options: Any) -> AsyncIterator[FakeRedis]:
        clients.append(redis := FakeRedis(url, options))
        try:
            yield redis
        finally:
            redis.open = False

    monkeypatch.setattr(aioentra_redis.fastapi, "connect", connect)
    yield clients
    assert [each for each in clients if each.open] == []


def application(**arguments: Any) -> FastAPI:
    app = FastAPI(**arguments)

    @app.get("/get/{key}")
    async def get(key: str, redis: Redis) -> str:
        return await redis.get(key)

    @app.websocket("/ws/{key}")
    async def ws(websocket: WebSocket, key: str, redis: Redis) -> None:
        await websocket.accept()
        await websocket.send_text(await redis.get(key))
        await websocket.close()

    return app


def test_http_and_websocket_get_the_client(made: list[FakeRedis]):
    with TestClient(application(lifespan=lifespan("rediss://one"))) as http:
        assert http.get("/get/key").json() == "key of rediss://one"
        with http.websocket_connect("/ws/key") as ws:
            assert ws.receive_text() == "key of rediss://one"
        assert [each.open for each in made] == [True]
    assert [each.open for each in made] == [False]


def test_options_are_passed_on(made: list[FakeRedis]):
    credential = object()
    app = application(lifespan=lifespan(credential=credential, open_timeout=3, socket_timeout=1))
    with TestClient(app):
        (redis,) = made
        assert redis.url is None
        assert redis.options == {
            "cluster": False,
            "credential": credential,
            "open_timeout": 3,
            "socket_timeout": 1,
        }


def test_cluster_can_be_asked_for(made: list[FakeRedis]):
    with TestClient(application(lifespan=lifespan("rediss://one", cluster="auto"))):
        assert made[0].options == {"cluster": "auto"}


def test_a_client_for_clusters_has_a_type_of_its_own(made: list[FakeRedis]):
    app = application(lifespan=lifespan("rediss://many", cluster=True))

    @app.get("/shard/{key}")
    async def shard(key: str, redis: RedisCluster) -> Any:
        return await redis.get(key)

    app.dependency_overrides[get_redis] = lambda: FakeRedis("an override", {})
    with TestClient(app) as http:
        assert http.get("/shard/key").json() == "key of an override"
        app.dependency_overrides.clear()
        assert http.get("/shard/key").json() == "key of rediss://many"
        assert made[0].options == {"cluster": True}


def test_composes_with_a_lifespan_of_the_user(made: list[FakeRedis]):
    redis_lifespan = lifespan("rediss://one")
    events: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with redis_lifespan(app) as state:
            events.append("up")
            yield {**state, "greeting": "hello"}
            events.append("down" if made[0].open else "too late")

    with TestClient(application(lifespan=own)) as http:
        assert http.get("/get/key").json() == "key of rediss://one"
    assert events == ["up", "down"]


def test_lifespan_can_run_again(made: list[FakeRedis]):
    app = application(lifespan=lifespan("rediss://one"))
    for _ in range(2):
        with TestClient(app) as http:
            assert http.get("/get/key").status_code == 200
    assert len(made) == 2


def test_two_clients(made: list[FakeRedis]):
    one, two = lifespan("rediss://one"), lifespan("rediss://two", name="queue")

    @asynccontextmanager
    async def both_lifespans(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with one(app) as first, two(app) as second:
            yield {**first, **second}

    app = application(lifespan=both_lifespans)

    @app.get("/both")
    async def both(redis: Redis, queue: Queue) -> list[str]:
        return [await redis.get("a"), await queue.get("b")]

    with TestClient(app) as http:
        assert http.get("/both").json() == ["a of rediss://one", "b of rediss://two"]


def test_mounted_application_sees_the_client(made: list[FakeRedis]):
    app = FastAPI(lifespan=lifespan("rediss://one"))
    app.mount("/sub", application())
    with TestClient(app) as http:
        assert http.get("/sub/get/key").json() == "key of rediss://one"


def ask_http(http: TestClient) -> None:
    http.get("/get/key")


def ask_websocket(http: TestClient) -> None:
    with http.websocket_connect("/ws/key"):
        pass


@pytest.mark.parametrize("ask", [ask_http, ask_websocket])
def test_missing_lifespan_is_explained(ask: Callable[[TestClient], None]):
    with TestClient(application()) as http, pytest.raises(LifecycleError) as caught:
        ask(http)
    message = str(caught.value)
    assert "FastAPI(lifespan=lifespan(" in message
    assert "yield {**state}" in message
    assert "with TestClient(app)" in message


def test_missing_second_client_is_explained_by_its_name(made: list[FakeRedis]):
    app = FastAPI(lifespan=lifespan("rediss://one"))

    @app.get("/")
    async def route(queue: Queue) -> None: ...

    with TestClient(app) as http, pytest.raises(LifecycleError, match="name='queue'"):
        http.get("/")


def test_dependency_can_be_overridden():
    app = application()
    app.dependency_overrides[get_redis] = lambda: FakeRedis("rediss://fake", {})
    assert TestClient(app).get("/get/key").json() == "key of rediss://fake"


def test_failure_to_connect_stops_the_application(monkeypatch: pytest.MonkeyPatch):
    @asynccontextmanager
    async def connect(url: str | None = None, **options: Any) -> AsyncIterator[FakeRedis]:
        raise OSError("nobody there")
        yield

    monkeypatch.setattr(aioentra_redis.fastapi, "connect", connect)
    app = application(lifespan=lifespan("rediss://one"))
    with pytest.raises(OSError, match="nobody there"), TestClient(app):
        pass


def test_parameters_do_not_show_in_the_schema():
    operation = application().openapi()["paths"]["/get/{key}"]["get"]
    assert [each["name"] for each in operation["parameters"]] == ["key"]
    assert "requestBody" not in operation


@pytest.mark.emulator
def test_signs_in_and_serves_http_and_websocket(entra_emulator: Emulator):
    principal = entra_emulator.service_principal

    @asynccontextmanager
    async def signed_in(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        source = TokenSource.from_client_secret(
            entra_emulator.tenant_id,
            principal.client_id,
            principal.secret or "",
            **entra_emulator.credential_options,
        )
        redis_lifespan = lifespan(
            entra_emulator.url,
            token_source=source,
            ssl_ca_certs=entra_emulator.ca_file,
            decode_responses=True,
        )
        async with source, redis_lifespan(app) as state:
            yield {**state}

    app = application(lifespan=signed_in)

    @app.put("/set/{key}/{value}")
    async def put(key: str, value: str, redis: Redis) -> bool:
        return bool(await redis.set(key, value))

    @app.get("/whoami")
    async def whoami(redis: Redis) -> str:
        return str(await redis.acl_whoami())

    with TestClient(app) as http:
        assert http.put("/set/greeting/hello").json() is True
        assert http.get("/get/greeting").json() == "hello"
        with http.websocket_connect("/ws/greeting") as ws:
            assert ws.receive_text() == "hello"
        assert http.get("/whoami").json() == principal.object_id
