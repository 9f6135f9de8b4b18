"""What type checkers must make of the public names. Nothing here runs; mypy and pyright read it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, assert_type

import redis
import redis.asyncio
from azure.identity import DefaultAzureCredential
from azure.identity.aio import ManagedIdentityCredential

import aioentra_redis.fastapi
from aioentra_redis import (
    ConnectError,
    EntraCredentialProvider,
    EntraRedis,
    EntraRedisCluster,
    EntraRedisError,
    Event,
    EventsDropped,
    EventStream,
    Health,
    HealthState,
    Reauthenticated,
    RefreshFailed,
    RetryConfig,
    Token,
    TokenRefreshConfig,
    TokenSource,
    TokenState,
    TokenStatus,
    connect,
    entra_kwargs,
)


async def connect_is_typed_by_cluster(url: str) -> None:
    assert_type(await connect(url, cluster=False), EntraRedis)
    assert_type(await connect(url, cluster=True), EntraRedisCluster)
    assert_type(await connect(url, cluster="auto"), EntraRedis | EntraRedisCluster)
    assert_type(await connect(url), EntraRedis | EntraRedisCluster)
    assert_type(await connect(), EntraRedis | EntraRedisCluster)


async def connect_can_be_entered(url: str) -> None:
    async with connect(url, cluster=False) as one:
        assert_type(one, EntraRedis)
    async with connect(url, cluster=True) as several:
        assert_type(several, EntraRedisCluster)
    async with connect(url) as either:
        assert_type(either, EntraRedis | EntraRedisCluster)


async def connect_takes(url: str, source: TokenSource) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, Reauthenticated):
            assert_type(event.latency, float)
        elif isinstance(event, RefreshFailed):
            assert_type(event.error, Exception)

    await connect(url, token_source=source, cluster=False)
    await connect(url, credential=DefaultAzureCredential(), cluster=False)
    await connect(url, credential=ManagedIdentityCredential(client_id="..."), cluster=False)
    await connect(
        url,
        cluster=False,
        username="...",
        open_timeout=10,
        close_timeout=1.5,
        recovery_timeout=5,
        on_event=on_event,
        socket_timeout=2,
        decode_responses=True,
    )


async def a_client_is_redis_pys(source: TokenSource) -> None:
    client = EntraRedis(host="localhost", port=6379, token_source=source)
    base: redis.asyncio.Redis = client
    assert_type(EntraRedis.from_url("redis://localhost", token_source=source), EntraRedis)
    async with client as entered:
        assert_type(entered, EntraRedis)
    await base.aclose()


async def events(client: EntraRedis, source: TokenSource) -> None:
    assert_type(client.events(), EventStream)
    async for event in source.events():
        assert_type(event, Event)
        if isinstance(event, EventsDropped):
            assert_type(event.count, int)


async def health(client: EntraRedis) -> None:
    found = await client.health(timeout=1)
    assert_type(found, Health)
    assert_type(found.state, HealthState)
    assert_type(found.ok, bool)
    assert_type(found.ping, float | None)
    assert_type(found.as_dict(), dict[str, Any])


async def sources(credential: ManagedIdentityCredential) -> None:
    async with TokenSource(credential) as source:
        assert_type(source, TokenSource)
        assert_type(await source.get(), Token)
        assert_type(source.current, Token | None)
        assert_type(source.status, TokenStatus)
        assert_type(source.state, TokenState)
    TokenSource(
        credential,
        refresh=TokenRefreshConfig(expiration_refresh_ratio=0.5, retry=RetryConfig(max_attempts=5)),
        name="cache",
    )
    assert_type(TokenSource.from_default(), TokenSource)
    assert_type(TokenSource.from_client_secret("tenant", "client", "secret"), TokenSource)
    assert_type(TokenSource.from_system_assigned_managed_identity(), TokenSource)
    assert_type(TokenSource.from_user_assigned_managed_identity(client_id="id"), TokenSource)


async def providers(source: TokenSource, credential: ManagedIdentityCredential) -> None:
    redis.asyncio.Redis(credential_provider=EntraCredentialProvider(source))
    assert_type(entra_kwargs(source), dict[str, Any])
    redis.asyncio.Redis.from_url("rediss://...", **entra_kwargs(source, allow_plaintext=True))
    provider = EntraCredentialProvider.in_thread(lambda: credential, timeout=10)
    assert_type(provider, EntraCredentialProvider)
    assert_type(provider.get_credentials(), tuple[str, str])
    assert_type(await provider.get_credentials_async(), tuple[str, str])
    EntraCredentialProvider.in_thread(TokenSource.from_default)
    with provider as entered:
        assert_type(entered, EntraCredentialProvider)
    redis.Redis(credential_provider=provider)
    await provider.aclose()


def errors_are_redis_pys(error: ConnectError) -> None:
    base: EntraRedisError = error
    caught: redis.asyncio.ConnectionError = error
    assert_type(error.stage, str)
    assert_type(error.port, int | None)
    raise caught from base


def lifespan_fits(cluster: Literal["auto"]) -> None:
    made = aioentra_redis.fastapi.lifespan("rediss://...", cluster=cluster, open_timeout=3)
    assert_type(made(None), AbstractAsyncContextManager[Mapping[str, Any]])


async def route(redis: aioentra_redis.fastapi.Redis) -> None:
    assert_type(redis, EntraRedis)


async def route_to_a_cluster(redis: aioentra_redis.fastapi.RedisCluster) -> None:
    assert_type(redis, EntraRedisCluster)


async def a_cluster_is_typed(source: TokenSource) -> None:
    made = EntraRedisCluster.from_url("rediss://...", token_source=source, recovery_timeout=10)
    assert_type(made, EntraRedisCluster)
    assert_type(await made.start(), EntraRedisCluster)
    assert_type(await made, EntraRedisCluster)
    async with EntraRedisCluster("host", 10000, node_tls_names=[".example.com"]) as entered:
        assert_type(entered, EntraRedisCluster)
    assert_type(await made.health(), Health)
    assert_type(made.token_source, TokenSource | None)
