"""Clients that others publish, fetched once from their registry and kept beside the virtual environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.servers import needs

KEPT = Path(sys.prefix) / "clients"
INSTALL_SECONDS = 240


def python_package(requirement: str) -> Path:
    """A folder for PYTHONPATH with this package alone: its own pins, older than ours, are not asked."""
    folder = KEPT / requirement
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    return _fetched(folder, lambda unfinished: [*command, str(unfinished), requirement], f"the package {requirement}")


def node_packages(name: str, versions: Mapping[str, str]) -> Path:
    """A folder whose node_modules holds these packages. Without node or npm: skipped, or failed in CI."""
    if not shutil.which("node") or not shutil.which("npm"):
        needs("node with npm", "nodejs npm")
    pinned = ",".join(f"{package}@{version}" for package, version in sorted(versions.items()))
    folder = KEPT / name
    if (folder / "pinned").is_file() and (folder / "pinned").read_text() != pinned:
        shutil.rmtree(folder)

    def command(unfinished: Path) -> list[str]:
        unfinished.mkdir(parents=True)
        (unfinished / "package.json").write_text(json.dumps({"private": True, "dependencies": dict(versions)}))
        (unfinished / "pinned").write_text(pinned)
        return ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(unfinished)]

    return _fetched(folder, command, f"the npm packages {pinned}")


def _fetched(folder: Path, command: Callable[[Path], list[str]], what: str) -> Path:
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    done = subprocess.run(command(unfinished), capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        needs(f"{what} ({done.stderr.strip()[-300:]})", "from its registry")
    unfinished.rename(folder)
    return folder
