"""``python -m aioentra_redis.cli``: the same as ``aioentra-redis``."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
