"""The whole product, started the way deploy/up starts it: every part under one supervisor, ports of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import free_port, free_port_of_tls

SOURCE_DIR = Path(__file__).parent.parent
START_TIMEOUT_SECONDS = 180
# What would send the tests elsewhere when it is set in the shell that runs them.
NOT_INHERITED = ("REDIS_URL", "BROKER_URL", "S3_ENDPOINT", "S3_BUCKET", "MODELS_FILE", "PUBLIC_URL", "IMAGE_DIR")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running installation. `env` is what it was started with: `deploy/up` and `deploy/down` need it again."""

    url: str
    tls_url: str
    flower_url: str
    grpc_host: str
    grpc_tls_host: str
    key: str
    admin_key: str
    state_dir: Path
    env: Mapping[str, str]

    @property
    def ca_file(self) -> Path:
        """Of an installation with TLS."""
        return self.state_dir / "ca.pem"

    @property
    def redis_url(self) -> str:
        return (self.state_dir / "redis-url").read_text().strip()

    @property
    def flower_password(self) -> str:
        return (self.state_dir / "flower-password").read_text().strip()

    def supervisorctl(self, *arguments: str) -> str:
        """What supervisorctl says, for example to ("restart", "worker"). Its exit status is not looked at."""
        command = [sys.executable, "-m", "supervisor.supervisorctl"]
        command += ["-c", str(SOURCE_DIR / "deploy" / "supervisord.conf"), *arguments]
        return subprocess.run(
            command, cwd=self.state_dir, env=dict(self.env), capture_output=True, text=True, check=False
        ).stdout

    def pid(self, part: str) -> int:
        """The process id of a part as its supervisor knows it; 0 while it does not run."""
        return int(self.supervisorctl("pid", part))

    def log(self, part: str) -> str:
        return (self.state_dir / "logs" / f"{part}.log").read_text(errors="replace")

    def inpaintd(self, *arguments: str) -> str:
        """What the command `inpaintd` prints when it is run against this installation."""
        return _inpaintd({**self.env, "REDIS_URL_FILE": str(self.state_dir / "redis-url")}, *arguments)


def local_environment(state_dir: Path, **settings: str) -> dict[str, str]:
    """The environment of an installation of its own: free ports, own state."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {
        **inherited,
        "STATE_DIR": str(state_dir),
        "API_PORT": str(free_port()),
        "API_TLS_PORT": str(free_port()),
        "FLOWER_PORT": str(free_port()),
        "REDIS_PORT": str(free_port()),
        "GRPC_PORT": str(free_port()),
        "GRPC_TLS_PORT": str(free_port_of_tls()),
        "READY_TIMEOUT_SECONDS": "120",
        **settings,
    }


@contextmanager
def running_service(state_dir: Path, *, tls: bool = False, **settings: str) -> Iterator[Service]:
    """Start everything, `settings` being environment variables; stop everything at the end."""
    env = local_environment(state_dir, **settings)
    _deploy("up", "--detach", *(["--tls"] if tls else []), env=env)
    try:
        _inpaintd(
            {**env, "REDIS_URL_FILE": str(state_dir / "redis-url")},
            *("keys", "create", "--name", "tests", "--scope", "admin", "--file", str(state_dir / "admin-key")),
        )
        yield Service(
            url=f"http://127.0.0.1:{env['API_PORT']}",
            tls_url=f"https://127.0.0.1:{env['API_TLS_PORT']}",
            flower_url=f"http://127.0.0.1:{env['FLOWER_PORT']}",
            grpc_host=f"127.0.0.1:{env['GRPC_PORT']}",
            grpc_tls_host=f"127.0.0.1:{env['GRPC_TLS_PORT']}",
            key=(state_dir / "api-key").read_text().strip(),
            admin_key=(state_dir / "admin-key").read_text().strip(),
            state_dir=state_dir,
            env=env,
        )
    finally:
        _deploy("down", env=env)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One installation for all tests that leave it as they found it, over TLS too; 127.0.0.0/8 may be called."""
    state_dir = tmp_path_factory.mktemp("service")
    with running_service(state_dir, tls=True, ALLOWED_PRIVATE_NETWORKS="127.0.0.0/8") as started:
        yield started


def _deploy(*arguments: str, env: Mapping[str, str]) -> None:
    _run([sys.executable, "-m", "deploy.local", *arguments], env)


def _inpaintd(env: Mapping[str, str], *arguments: str) -> str:
    return _run([sys.executable, "-c", "from storage.cli import main; main()", *arguments], env)


def _run(command: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=SOURCE_DIR,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
