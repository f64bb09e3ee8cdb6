"""The front end as it is served: gunicorn with threads, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.servers import free_port

SOURCE_DIR = Path(__file__).parent.parent
START_SECONDS = 30
THREADS = 256


@contextmanager
def serving(redis_url: str, folder: Path, **settings: str) -> Iterator[str]:
    """The base URL of a running front end; `settings` are environment variables."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--config", "deploy/gunicorn.conf.py", "api.app:create_app()"]
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "IMAGE_DIR": str(folder),
        "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
        "LOG_LEVEL": "WARNING",
        "API_PORT": str(port),
        "API_THREADS": str(THREADS),
        **settings,
    }
    process = subprocess.Popen(command, cwd=SOURCE_DIR, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            requests.get(f"{url}/health", timeout=1).raise_for_status()
            return
        except requests.RequestException:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
