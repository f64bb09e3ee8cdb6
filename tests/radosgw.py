"""A real S3 service for tests: Debian's radosgw over a Ceph cluster of one that lives in memory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

PACKAGES = "radosgw ceph-mon ceph-mgr ceph-osd ceph-common"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "ceph-authtool", "monmaptool")
ACCESS_KEY = "AKIDFORTESTS"
SECRET_KEY = "secret-for-tests"
REGION = "us-east-1"

_STEP_SECONDS = 60.0
_TERM_SECONDS = 1.0

_CAPABILITIES = {
    "client.admin": ("mon=allow *", "osd=allow *", "mgr=allow *"),
    "mon.": ("mon=allow *",),
    "mgr.a": ("mon=allow profile mgr", "osd=allow *"),
    "osd.0": ("mon=allow profile osd", "osd=allow *", "mgr=allow profile osd"),
    "client.rgw.a": ("mon=allow rwx", "osd=allow rwx", "mgr=allow rw"),
}

_CONFIGURATION = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
mgr initial modules =
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
rgw data = {folder}
keyring = {folder}/keyring
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name =
rgw thread pool size = 32
rgw lc debug interval = 5
"""


@dataclass(frozen=True)
class Radosgw:
    endpoint: str
    access_key: str
    secret_key: str
    region: str

    @property
    def environment(self) -> dict[str, str]:
        """The usual AWS variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        name = f"test-{uuid4().hex}"
        client.create_bucket(Bucket=name)
        client.close()
        return name


class _Cluster:
    """The four servers below one temporary folder, and what starts and stops them."""

    def __init__(self) -> None:
        # Not pytest's folder: a Unix socket's path must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="rgw-"))
        self._servers: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "CEPH_CONF": str(self._folder / "ceph.conf")}
        self.endpoint = ""

    def start(self) -> None:
        mon_port, port = _free_ports(2)
        fsid = str(uuid4())
        for name in ("mon", "mgr", "osd", "run", "log"):
            (self._folder / name).mkdir()
        configuration = _CONFIGURATION.format(fsid=fsid, mon_port=mon_port, port=port, folder=self._folder)
        (self._folder / "ceph.conf").write_text(configuration)
        monmap, keyring = str(self._folder / "monmap"), str(self._folder / "keyring")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap)
        self._run("ceph-authtool", "--create-keyring", keyring)
        for name, capabilities in _CAPABILITIES.items():
            pairs = [word for capability in capabilities for word in ("--cap", *capability.split("=", 1))]
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *pairs)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._serve("ceph-mon", "-i", "a", "-f")
        self._wait_for(mon_port)
        osd = str(uuid4())
        number = self._run("ceph", "osd", "new", osd)
        self._serve("ceph-mgr", "-i", "a", "-f")
        self._run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", number, "-f")
        keys = ("--access-key", ACCESS_KEY, "--secret", SECRET_KEY)
        self._run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        self._serve("radosgw", "-n", "client.rgw.a", "-f")
        self._wait_for(port)
        self.endpoint = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """All by their process ids; those that do not heed SIGTERM (the OSD, the gateway) are killed."""
        for server in self._servers:
            server.terminate()
        deadline = time.monotonic() + _TERM_SECONDS
        for server in self._servers:
            try:
                server.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self._servers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_STEP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def _serve(self, *command: str) -> None:
        with (self._folder / "log" / f"{command[0]}.out").open("wb") as log:
            self._servers.append(
                subprocess.Popen(command, env=self._environment, cwd=self._folder, stdout=log, stderr=log)
            )

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + _STEP_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        logs = [path.read_text()[-2000:] for path in (self._folder / "log").glob("*.out")]
        raise AssertionError(f"nothing listens on port {port}: {logs}")


def _free_ports(count: int) -> list[int]:
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


@cache
def _running() -> _Cluster:
    cluster = _Cluster()
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster


@pytest.fixture(scope="session")
def radosgw() -> Iterator[Radosgw]:
    """The server, the same one for every module that imports this fixture."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        message = f"needs {', '.join(missing)}: apt-get install {PACKAGES}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    cluster = _running()
    yield Radosgw(cluster.endpoint, ACCESS_KEY, SECRET_KEY, REGION)
    cluster.stop()
