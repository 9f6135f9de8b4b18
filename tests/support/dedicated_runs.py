"""What tests of dedicated connections share."""

from __future__ import annotations

from typing import Any

SENT = 61.0


async def run(connection: Any, *words: Any) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()
