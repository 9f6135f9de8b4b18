"""An asyncio Redis client that signs in with Microsoft Entra ID tokens and stays signed in."""

__version__ = "0.1.0.dev0"
