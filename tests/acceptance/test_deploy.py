"""deploy/up and deploy/down as a user meets them: started, looked at, broken, started again, stopped."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image

from deploy import settings_reference
from deploy.first_picture import PHOTOGRAPH_DIR, SAMPLE_DIR, data_uri
from deploy.parts import MARK, Trouble, find_redis_server, read_settings, redis_version
from tests.service import SOURCE_DIR, Service, local_environment, running_service

FLOWER_ROUTES = (
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/api/workers",
    "/api/tasks",
    "/metrics",
    "/healthcheck",
    "/static/css/flower.css",
)
WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.1


def until(true: Callable[[], object], *, seconds: float = WITHIN_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(POLL_SECONDS)


def processes_of(state_dir: Path) -> list[int]:
    """Every process that was started for this installation: all have its mark, or work in its folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={state_dir}".encode() in (folder / "environ").read_bytes().split(b"\0")
            inside = (folder / "cwd").readlink().is_relative_to(state_dir)
        except OSError:
            continue
        if marked or inside:
            found.append(int(folder.name))
    return found


def submit(service: Service, **fields: object) -> requests.Response:
    """The sample picture once more, with the fields given."""
    body = {
        "prompt": "a red circle on a white background",
        "init_image": data_uri(SAMPLE_DIR / "picture.png"),
        "mask_image": data_uri(SAMPLE_DIR / "mask.png"),
        "width": 128,
        "height": 128,
        **fields,
    }
    headers = {"Authorization": f"Bearer {service.key}"}
    return requests.post(f"{service.url}/api/v6/realtime/inpaint", json=body, headers=headers, timeout=30)


def test_in_the_first_picture_the_thing_is_gone_and_nothing_else_has_changed(service: Service) -> None:
    before = np.asarray(Image.open(PHOTOGRAPH_DIR / "photograph.png").convert("RGB")).astype(int)
    mask = np.asarray(Image.open(PHOTOGRAPH_DIR / "mask.png"))
    after = np.asarray(Image.open(service.state_dir / "sample.png")).astype(int)

    assert after.shape == before.shape
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert orange(before)[mask == 255].mean() > 0.1
    assert orange(after)[mask == 255].mean() < 0.01


def orange(picture: NDArray[np.int_]) -> NDArray[np.bool_]:
    """As the cone is, and no brick."""
    red, green, blue = (picture[..., channel] for channel in range(3))
    found: NDArray[np.bool_] = (red > 170) & (red - green > 90) & (green - blue > 25)
    return found


def test_secrets_lie_in_files_of_their_owner_and_on_no_command_line(service: Service) -> None:
    names = ("api-key", "flower-password", "redis-password", "redis-url", "redis/redis.conf")
    assert all((service.state_dir / name).stat().st_mode & 0o077 == 0 for name in names)

    secrets = [(service.state_dir / name).read_text().strip().encode() for name in names[:3]]
    lines = [(Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in processes_of(service.state_dir)]
    assert len(lines) >= 6
    assert not [line for line in lines for secret in secrets if secret in line]


def test_redis_is_behind_a_password_and_never_evicts(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", int(service.env["REDIS_PORT"]))) as connection:
        connection.sendall(b"GET inpaintd:x\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
    configuration = (service.state_dir / "redis" / "redis.conf").read_text().splitlines()
    assert {"bind 127.0.0.1", "appendonly yes", "maxmemory-policy noeviction"} <= set(configuration)


@pytest.mark.parametrize("route", FLOWER_ROUTES)
def test_flower_shows_nothing_without_its_password(service: Service, route: str) -> None:
    url = service.flower_url + route
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, auth=("inpaintd", "wrong"), timeout=10).status_code == 401
    assert requests.post(url, auth=("admin", service.flower_password), timeout=10).status_code == 401
    assert requests.get(url, auth=("inpaintd", service.flower_password), timeout=10).status_code == 200


def test_flower_names_the_job_of_a_ticket_and_how_it_ended(service: Service) -> None:
    answer = submit(service).json()
    assert answer["status"] == "success"
    headers = {"Authorization": f"Bearer {service.key}"}
    job = requests.get(f"{service.url}/jobs/{answer['id']}", headers=headers, timeout=10).json()
    auth = ("inpaintd", service.flower_password)

    def results() -> list[str]:
        tickets = requests.get(f"{service.flower_url}/api/tasks", auth=auth, timeout=10).json().values()
        return [str(ticket["result"]) for ticket in tickets if ticket["name"] == "inpaint"]

    until(lambda: any(job["id"] in result and "succeeded" in result for result in results()))


def test_flower_shows_a_worker_online_while_it_paints(service: Service) -> None:
    number = submit(service, instant_response=True, samples=4, steps=51).json()["id"]
    auth = ("inpaintd", service.flower_password)
    headers = {"Authorization": f"Bearer {service.key}"}

    def state() -> str:
        return str(requests.get(f"{service.url}/jobs/{number}", headers=headers, timeout=10).json()["status"])

    until(lambda: state() == "processing")
    workers = requests.get(f"{service.flower_url}/workers?json=1", auth=auth, timeout=10).json()["data"]
    assert state() == "processing", "it paints still"
    assert [each["status"] for each in workers if each["hostname"].startswith("worker@")] == [True]


def test_a_worker_that_is_killed_comes_back_and_paints_on(service: Service) -> None:
    killed = service.pid("worker")
    os.kill(killed, signal.SIGKILL)

    until(lambda: service.pid("worker") not in (0, killed))
    number = submit(service, instant_response=True).json()["id"]
    url = f"{service.url}/jobs/{number}"
    headers = {"Authorization": f"Bearer {service.key}"}
    until(lambda: requests.get(url, headers=headers, timeout=10).json()["status"] == "succeeded")


def test_starting_twice_says_where_everything_is(service: Service) -> None:
    again = deploy("up", "--detach", "--no-install", env=service.env)

    assert again.returncode == 0, again.stderr
    assert "running already" in again.stdout
    assert service.url in again.stdout
    assert service.flower_url in again.stdout
    assert service.key in again.stdout


def test_a_taken_port_is_named_with_the_variable_that_changes_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for variable in ("API_PORT", "API_TLS_PORT", "FLOWER_PORT", "REDIS_PORT", "GRPC_PORT"):
            env = local_environment(tmp_path / "state", **{variable: str(port)})
            refused = deploy("up", "--detach", "--tls", "--no-install", env=env)
            assert refused.returncode == 1
            assert f"Port {port} " in refused.stderr
            assert f"{variable}=" in refused.stderr
    assert processes_of(tmp_path / "state") == []


def test_settings_that_cannot_be_used_are_named_before_anything_starts(tmp_path: Path) -> None:
    env = local_environment(tmp_path / "state", WAIT_SECONDS="soon", MAX_BATCH="0")
    command = ["bash", str(SOURCE_DIR / "deploy" / "up"), "--no-install", "--detach"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WAIT_SECONDS: " in done.stderr and "MAX_BATCH: " in done.stderr
    assert processes_of(tmp_path / "state") == []


def test_a_redis_of_our_own_that_is_named_as_if_it_were_foreign_is_started_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "redis-url").write_text("redis://:old@127.0.0.1:1/0")
    settings = read_settings({"STATE_DIR": str(tmp_path), "REDIS_URL_FILE": str(tmp_path / "redis-url")})
    assert settings.redis_is_embedded


def test_what_is_no_port_is_refused_by_name() -> None:
    for value in ("0", "65536", "http", "-1", "８０"):
        with pytest.raises(Trouble, match="API_PORT"):
            read_settings({"API_PORT": value})


def test_ctrl_c_in_the_foreground_leaves_no_process(tmp_path: Path, redis_url: str) -> None:
    state_dir = tmp_path / "a folder with spaces"
    env = local_environment(state_dir, REDIS_URL=redis_url)
    command = ["bash", str(SOURCE_DIR / "deploy" / "up"), "--no-install"]
    with subprocess.Popen(command, cwd="/", env=env, stdout=subprocess.PIPE, text=True) as foreground:
        assert foreground.stdout is not None
        shown = list(_lines_until(foreground.stdout, "Ctrl-C"))
        running = processes_of(state_dir)
        foreground.send_signal(signal.SIGINT)
        assert foreground.wait(WITHIN_SECONDS) == 0

    assert any("/images/" in line for line in shown)
    assert len(running) >= 5
    assert processes_of(state_dir) == []
    assert not (state_dir / "redis" / "redis.conf").exists(), "REDIS_URL names a server: none of our own is needed"


def test_keys_and_pictures_outlive_a_restart_on_the_redis_that_comes_with_it(tmp_path: Path) -> None:
    """Where the system has no redis-server: 6.2, the oldest that is supported."""
    without_redis = str(Path(sys.prefix) / "bin")
    state_dir = tmp_path / "state"
    with running_service(state_dir, PATH=without_redis) as first:
        assert redis_version(find_redis_server(without_redis))[:2] == (6, 2)
        link = submit(first).json()["output"][0]
        picture = requests.get(link, timeout=10).content
        assert Image.open(io.BytesIO(picture)).size == (128, 128)
    assert processes_of(state_dir) == []

    ports = {name: first.env[name] for name in ("API_PORT", "FLOWER_PORT", "REDIS_PORT")}
    with running_service(state_dir, PATH=without_redis, **ports) as second:
        assert second.key == first.key
        assert requests.get(link, timeout=10).content == picture
    assert processes_of(state_dir) == []


def test_what_a_killed_supervisor_leaves_behind_is_ended(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with running_service(state_dir) as orphaned:
        os.kill(int((state_dir / "supervisord.pid").read_text()), signal.SIGKILL)
        assert len(processes_of(state_dir)) >= 5
        refused = deploy("up", "--detach", "--no-install", env=orphaned.env)
        assert refused.returncode == 1
        assert "deploy/down" in refused.stderr
        stopped = deploy("down", env=orphaned.env)
        assert stopped.returncode == 0, stopped.stderr
        assert processes_of(state_dir) == []


def test_a_virtual_environments_redis_comes_after_the_systems(tmp_path: Path) -> None:
    for name, version in (("venv", "7.9.9"), ("old", "5.0.3"), ("new", "6.2.0")):
        folder = tmp_path / name / "bin"
        folder.mkdir(parents=True)
        binary = folder / "redis-server"
        binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 malloc=libc bits=64'\n")
        binary.chmod(0o755)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    search_path = os.pathsep.join(str(tmp_path / name / "bin") for name in ("venv", "old", "new"))

    assert find_redis_server(search_path) == tmp_path / "new" / "bin" / "redis-server"


def test_a_missing_system_package_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("id", "bash"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    python = tools / "python3"

    def made(script: str) -> subprocess.CompletedProcess[str]:
        python.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        python.chmod(0o755)
        command = ["bash", "-c", f"source '{SOURCE_DIR}/deploy/install.sh'; set -eu; make_venv"]
        env = {"PATH": str(tools)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    too_old = made("exit 1")
    assert too_old.returncode == 1
    assert "Python 3.11 or newer" in too_old.stderr
    assert "apt-get install -y python3 python3-venv" in too_old.stderr

    without_venv = made(f'[[ "$*" != *ensurepip* ]] || exit 1; exec "{sys.executable}" "$@"')
    assert without_venv.returncode == 1
    assert "apt-get install -y python3-venv" in without_venv.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_example_environment_lists_every_setting() -> None:
    written = settings_reference.FILE.read_text()
    assert written == settings_reference.rendered(), "run: .venv/bin/python -m deploy.settings_reference"
    document = settings_reference.DOCUMENT.read_text()
    assert document == settings_reference.with_table(document), "run: .venv/bin/python -m deploy.settings_reference"
    readme = settings_reference.README.read_text()
    assert readme == settings_reference.with_few(readme), "run: .venv/bin/python -m deploy.settings_reference"


def deploy(script: str, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run deploy/up or deploy/down from another folder, as a user may."""
    command = ["bash", str(SOURCE_DIR / "deploy" / script), *arguments]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=120, check=False)


def _lines_until(lines: Iterator[str], wanted: str) -> Iterator[str]:
    for line in lines:
        yield line
        if wanted in line:
            return
