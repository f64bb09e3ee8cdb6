"""Where and with what the benchmarks ran: a figure without these says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from worker.settings import WorkerSettings

PACKAGES = ("torch", "diffusers", "celery", "redis", "Flask", "gunicorn", "Pillow", "opencv-contrib-python-headless")
GIBIBYTE = 1024**3


def machine_facts() -> Mapping[str, str]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {_cpu_model()}, {memory_bytes / GIBIBYTE:.0f} GiB",
        "torch threads": f"{WorkerSettings().torch_thread_count} (worker and control alike)",
        "load before": load(),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
    }


def load() -> str:
    """The load average of the last minute: what else the machine was doing."""
    return f"{os.getloadavg()[0]:.1f}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
