"""What the identity endpoints have in common: faults, errors, and the log of requests."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from ._directory import Directory
from ._records import Endpoint
from ._settings import Cut, Faults, IdentityFailure

__all__ = ["Answer", "entra_error", "platform_error", "token_endpoint"]

CONTENT_TYPE = "Content-Type"
JSON = "application/json; charset=utf-8"

Answer = tuple[web.Response, str | None]
"""A response and the ``uti`` of the token in it, if there is one."""


def entra_error(
    status: int, error: str, code: int, description: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the form that Entra ID gives it."""
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%SZ}"
    trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
    document = {
        "error": error,
        "error_description": (
            f"AADSTS{code}: {description} Trace ID: {trace} "
            f"Correlation ID: {correlation} Timestamp: {now}"
        ),
        "error_codes": [code],
        "timestamp": now,
        "trace_id": trace,
        "correlation_id": correlation,
    }
    return web.json_response(document, status=status, headers=headers)


def platform_error(
    status: int, error: str, description: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the form that managed identity endpoints give it."""
    document = {"error": error, "error_description": description}
    return web.json_response(document, status=status, headers=headers)


def failure_response(failure: IdentityFailure, endpoint: Endpoint) -> web.Response:
    """What an endpoint answers while it fails on demand."""
    headers = {}
    if failure.retry_after is not None:
        asked = failure.retry_after
        headers["Retry-After"] = asked if isinstance(asked, str) else f"{asked:g}"
    if failure.body is not None:
        return web.Response(
            status=failure.status,
            text=failure.body,
            headers=headers,
            content_type="application/json" if failure.body[:1] in "{[" else "text/plain",
        )
    description = failure.description or "The emulator was asked to fail."
    if endpoint != "token":
        return platform_error(failure.status, failure.error, description, headers)
    code = 90033 if failure.code is None else failure.code  # 90033: a transient error
    return entra_error(failure.status, failure.error, code, description, headers)


def token_endpoint(
    directory: Directory,
    endpoint: Endpoint,
    answer: Callable[[web.Request], Awaitable[Answer]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An aiohttp handler for an endpoint that hangs, dawdles, fails and is logged as told."""

    async def handle(request: web.Request) -> web.StreamResponse:
        faults = directory.faults
        if faults.hangs.take():
            await faults.until_healed()
        elif faults.identity_delay > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(faults.until_healed(), faults.identity_delay)
        uti = None
        failure = faults.take_failure(endpoint)
        if failure is not None:
            response = failure_response(failure, endpoint)
        else:
            response, uti = await answer(request)
        directory.note_request(endpoint, response.status, uti)
        cut = faults.take_cut(endpoint)
        return response if cut is None else await cut_off(request, response, cut, faults)

    return handle


async def cut_off(
    request: web.Request, response: web.Response, cut: Cut, faults: Faults
) -> web.StreamResponse:
    """Send ``response`` as far as ``cut`` lets it."""
    body = response.body
    assert isinstance(body, bytes)
    if cut.then == "end":
        return web.Response(
            body=body[: cut.after], status=response.status, headers={CONTENT_TYPE: JSON}
        )
    part = web.StreamResponse(status=response.status, headers={CONTENT_TYPE: JSON})
    part.content_length = len(body)
    if cut.after is not None:
        await part.prepare(request)
        await part.write(body[: cut.after])
    if cut.then == "hang":
        await faults.until_healed()
    if request.transport is not None:
        request.transport.close()
    return part
