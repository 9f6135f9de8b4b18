"""Does an installed wheel hold what it should? Run by ``nox -s build`` outside of the checkout."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import aioentra_redis


def main() -> None:
    package = Path(aioentra_redis.__file__).parent
    if "site-packages" not in package.parts:
        raise SystemExit(f"this is not the installed package: {package}")
    if not (package / "py.typed").is_file():
        raise SystemExit("py.typed is missing from the wheel")
    version = importlib.metadata.version("aioentra-redis")
    if version != aioentra_redis.__version__:
        raise SystemExit(f"the wheel is {version}, the package {aioentra_redis.__version__}")
    for name in getattr(aioentra_redis, "__all__", ()):
        getattr(aioentra_redis, name)
    print(f"aioentra-redis {version} imports from {package.name}/ with its public names")


if __name__ == "__main__":
    main()
