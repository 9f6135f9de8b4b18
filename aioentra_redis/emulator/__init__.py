"""A local stand-in for Entra ID, managed identity and Azure's token-enforcing Redis.

For development and tests, on one machine, without Azure::

    async with Emulator(token_lifetime=30.0) as emulator:
        emulator.url  # "rediss://localhost:PORT", enforcing tokens
        emulator.environ("client-secret")  # leads unmodified Azure credentials here

It runs in a process of its own, listens on loopback only, and ends with its user's process.
``python -m aioentra_redis.emulator`` runs one in a terminal; ``pytest_plugin`` has fixtures.
"""

from __future__ import annotations

from ._emulator import Emulator
from ._errors import EmulatorError
from ._records import (
    AuthAttempt,
    ConnectionClose,
    Identity,
    IdentityRequest,
    IssuedToken,
    Log,
    Node,
    OpenConnection,
)

__all__ = [
    "AuthAttempt",
    "ConnectionClose",
    "Emulator",
    "EmulatorError",
    "Identity",
    "IdentityRequest",
    "IssuedToken",
    "Log",
    "Node",
    "OpenConnection",
]
