"""What every test has: one thread for arithmetic, no proxies, the servers."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tests.radosgw import radosgw
from tests.servers import redis_server, redis_url
from tests.service import service

__all__ = ["radosgw", "redis_server", "redis_url", "service"]
