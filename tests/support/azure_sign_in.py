"""Sign in with an unmodified Azure credential in a process of its own, as a program would.

Run as a script: the arguments are a JSON list of [class name, keyword arguments]; a JSON list with
what each got goes to standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

SCOPE = "https://redis.azure.com/.default"
AMBIENT = ("AZURE_", "IDENTITY_", "IMDS_", "MSI_", "SSL_CERT_", "REDIS_")

Spec = tuple[str, dict[str, Any]]


async def sign_in_elsewhere(environ: dict[str, str], *specs: Spec) -> list[dict[str, Any]]:
    """Run the credentials one after the other in a child with ``environ`` and no other settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(AMBIENT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__)),
        json.dumps(specs),
        env={**inherited, **environ},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: list[dict[str, Any]] = json.loads(output)
    return found


async def sign_in(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from azure.identity import aio

    try:
        async with getattr(aio, name)(**options) as credential:
            info = await credential.get_token_info(SCOPE)
            return {
                "token": info.token,
                "expires_on": info.expires_on,
                "refresh_on": info.refresh_on,
            }
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}


async def main() -> None:
    print(json.dumps([await sign_in(*spec) for spec in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    asyncio.run(main())
