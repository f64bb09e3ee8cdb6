"""The commands behind deploy/up and deploy/down: the whole installation on this machine, under one supervisor."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from types import FrameType

from deploy.certificates import certificate_files
from deploy.first_picture import FirstPicture, KeyRefused, call, paint
from deploy.parts import (
    FLOWER_USER,
    LOOPBACK,
    SOURCE_DIR,
    LocalSettings,
    Trouble,
    check_ports,
    prepare,
    raise_open_files_limit,
    read_settings,
)
from deploy.supervision import Part, Supervision

POLL_SECONDS = 0.1
WATCH_SECONDS = 1.0
LOG_LINES = 25
LINE_BYTES, LINE_WIDTH = 2_000, 80
PRIVATE = 0o700
ENDS_TOLERATED = 3
KEY_RETRY_SECONDS = 0.3
KEY_TIMEOUT_SECONDS = 30.0
KEY_NAME = "development"
SHELL_ERROR, SHELL_INTERRUPTED = 1, 130


class Stopped(Exception):
    """Somebody asked this command to end."""


class Wish:
    """That somebody asked this command to end. An exception from a signal can be lost in a library's clean-up,
    where Python drops it; so the wish is kept, and loops look at it."""

    asked = False

    @classmethod
    def hear(cls, _signal: int, _frame: FrameType | None) -> None:
        cls.asked = True
        raise Stopped

    @classmethod
    def heed(cls) -> None:
        if cls.asked:
            raise Stopped


class Display:
    """Lines with the seconds since the start; what changes all the time is one line that is written over."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._passing = ""

    def say(self, text: str = "") -> None:
        clear = "\r\x1b[K" if self._passing and sys.stdout.isatty() else ""
        # Whoever read this may be gone; what is started must be stopped all the same.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(clear + text + "\n")
            sys.stdout.flush()

    def event(self, text: str) -> None:
        self.say(self._timed(text))

    def passing(self, text: str) -> None:
        """Shown once where the output is no terminal."""
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K" + self._timed(text))
            sys.stdout.flush()
        elif text != self._passing:
            self.say(self._timed(text))
        self._passing = text

    def _timed(self, text: str) -> str:
        return f"{time.monotonic() - self._since:6.1f} s  {text}"


class Watch:
    """What has become of the parts since the last look."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._states: dict[str, str] = {}
        self._ends: dict[str, set[int]] = {}

    def changes(self) -> list[str]:
        parts = self._supervision.parts()
        told = []
        for part in parts:
            known = f"{part.state} {part.pid}"
            if self._states.get(part.name) != known:
                self._states[part.name] = known
                told.append(_described(part))
            if part.stopped_at:
                self._ends.setdefault(part.name, set()).add(part.stopped_at)
        return told

    def not_running(self) -> list[str]:
        return [name for name, known in self._states.items() if not known.startswith("RUNNING")]

    def hopeless(self) -> str | None:
        """The part that ends again and again."""
        given_up = [name for name, known in self._states.items() if known.startswith("FATAL")]
        restless = [name for name, ends in self._ends.items() if len(ends) >= ENDS_TOLERATED]
        return next(iter(given_up + restless), None)


def up(settings: LocalSettings, environment: Mapping[str, str], *, detach: bool) -> int:
    display = Display()
    supervision = Supervision(settings.state_dir)
    if supervision.is_running():
        display.say("inpaintd is running already; `bash deploy/down` stops it.")
        display.say(_summary(settings, None))
        return 0
    left = supervision.leftovers()
    if left:
        raise Trouble("Parts of an earlier start still run without a supervisor; `bash deploy/down` ends them.")
    check_ports(settings)
    parts_environment = prepare(settings, environment)
    _check_settings(parts_environment)
    raise_open_files_limit()
    display.event(f"starting Redis ({parts_environment['REDIS_SERVER']})" if settings.redis_is_embedded else "starting")
    try:
        supervision.start(parts_environment)
        picture = _first_picture(settings, parts_environment, supervision, display)
        display.say(_summary(settings, picture))
        if not detach:
            display.say("Ctrl-C stops everything.\n")
            _watch_for_ever(supervision, display)
    except BaseException:
        _forget_further_signals()
        display.event("stopping all parts")
        supervision.stop(display.event)
        display.event("stopped")
        raise
    return 0


def down(settings: LocalSettings) -> int:
    display = Display()
    if not settings.state_dir.exists():
        display.say("Nothing of inpaintd runs here.")
        return 0
    supervision = Supervision(settings.state_dir)
    if not supervision.is_running() and not supervision.leftovers():
        display.say("Nothing of inpaintd runs here.")
        return 0
    display.event("stopping all parts")
    supervision.stop(display.event)
    display.event("stopped; no process is left")
    return 0


def _check_settings(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "deploy.check_settings"]
    done = subprocess.run(command, env=dict(environment), cwd=SOURCE_DIR, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Trouble(f"Settings that cannot be used:\n{done.stdout.strip() or done.stderr.strip()}")


def _first_picture(
    settings: LocalSettings, environment: Mapping[str, str], supervision: Supervision, display: Display
) -> FirstPicture:
    watch = Watch(supervision)
    deadline = time.monotonic() + settings.ready_timeout_seconds
    if not settings.key_file.exists():
        _create_key(settings, environment)
        display.event(f"made the development key: {settings.key_file}")
    _wait_until_ready(settings, watch, display, deadline)
    result = settings.state_dir / "sample.png"
    for _ in range(2):
        try:
            key = settings.key_file.read_text().strip()
            return paint(settings.api_url, key, file=result, deadline=deadline, show=display.passing)
        except KeyRefused:
            display.event("this Redis does not know the development key: making another")
            settings.key_file.unlink()
            _create_key(settings, environment)
    raise Trouble("The API refuses the key that was just made.")


def _create_key(settings: LocalSettings, environment: Mapping[str, str]) -> None:
    deadline = time.monotonic() + KEY_TIMEOUT_SECONDS
    command = [sys.executable, "-c", "from storage.cli import main; main()", "keys", "create"]
    command += ["--name", KEY_NAME, "--file", str(settings.key_file)]
    while True:
        done = subprocess.run(
            command, env=dict(environment), cwd=SOURCE_DIR, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        # Redis may be loading its file still.
        if time.monotonic() > deadline:
            raise Trouble(f"The development key cannot be made:\n{done.stderr.strip() or done.stdout.strip()}")
        time.sleep(KEY_RETRY_SECONDS)


def _wait_until_ready(settings: LocalSettings, watch: Watch, display: Display, deadline: float) -> None:
    while True:
        for change in watch.changes():
            display.event(change)
        part = watch.hopeless()
        if part:
            raise Trouble(f"{part} does not stay up. The end of its log:\n{_log_end(settings, part)}")
        missing = _missing(settings, watch)
        if not missing:
            display.event("ready")
            return
        if time.monotonic() > deadline:
            limit = f"READY_TIMEOUT_SECONDS={settings.ready_timeout_seconds:g}"
            raise Trouble(f"Not ready within {limit}: still no {', no '.join(missing)}. Logs: {settings.log_dir}")
        told = _last_words(settings, "worker") if missing == ["worker"] else ""
        display.passing(f"waiting for {', '.join(missing)}{told and f': {told}'}")
        Wish.heed()
        time.sleep(POLL_SECONDS)


def _missing(settings: LocalSettings, watch: Watch) -> list[str]:
    """What does not answer yet: parts, or what the API's /ready does without."""
    try:
        status, body = call(f"{settings.api_url}/ready")
        told = body.get("parts", {})
        missing = [name for name, state in told.items() if state != "ok"]
        if status != HTTPStatus.OK and not missing:
            missing = ["api"]
    except OSError:
        missing = ["api"]
    if not missing:
        try:
            call(settings.flower_url)
        except OSError:
            missing = ["flower"]
    if not missing and not _listens(settings.grpc_port):
        missing = ["grpc"]
    return missing + [name for name in watch.not_running() if name not in missing]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _watch_for_ever(supervision: Supervision, display: Display) -> None:
    watch = Watch(supervision)
    watch.changes()
    while supervision.is_running():
        for change in watch.changes():
            display.event(change)
        Wish.heed()
        time.sleep(WATCH_SECONDS)
    display.event("the supervisor has ended")


def _described(part: Part) -> str:
    detail = f"process {part.pid}" if part.pid else part.description
    return f"{part.name:<10} {part.state.lower()}{f' ({detail})' if detail else ''}"


def _log_end(settings: LocalSettings, part: str) -> str:
    log = settings.log_dir / f"{part}.log"
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join([*lines[-LOG_LINES:], f"(all of it: {log})"])


def _last_words(settings: LocalSettings, part: str) -> str:
    """The last line of a part's log, without its time: loading a model takes a while, and says so there."""
    try:
        with (settings.log_dir / f"{part}.log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LINE_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    line = " ".join(lines[-1].split()) if lines else ""
    return re.sub(r"^[\d\-T:.]+Z ", "", line)[:LINE_WIDTH]


def _summary(settings: LocalSettings, picture: FirstPicture | None) -> str:
    key = settings.key_file.read_text().strip() if settings.key_file.exists() else "(not made yet)"
    rows = {
        "API": settings.api_url,
        **_tls_rows(settings),
        "API docs": f"{settings.api_url}/docs",
        "gRPC": f"{LOOPBACK}:{settings.grpc_port}",
        **_grpc_tls_rows(settings),
        "API key": f"{key}  (in {settings.key_file})",
        "Flower": f"{settings.flower_url}  (user {FLOWER_USER}, password in {settings.flower_password_file})",
        "Logs": str(settings.log_dir),
        "Stop": "bash deploy/down",
    }
    if picture:
        first = {"Result": f"{picture.url}  ({picture.seconds:.1f} s)", "Saved as": str(picture.file)}
        rows = first | rows
    return "\n" + "\n".join(f"  {name:<9} {value}" for name, value in rows.items()) + "\n"


def _tls_rows(settings: LocalSettings) -> dict[str, str]:
    if settings.tls_url is None:
        return {}
    return {"TLS": f"{settings.tls_url}  (its CA: {certificate_files(settings.state_dir).ca})"}


def _grpc_tls_rows(settings: LocalSettings) -> dict[str, str]:
    if settings.grpc_tls_port is None:
        return {}
    ca = certificate_files(settings.state_dir).ca
    return {"gRPC TLS": f"{LOOPBACK}:{settings.grpc_tls_port}  (its CA: {ca})"}


def _forget_further_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up")
    starting.add_argument("--detach", action="store_true", help="return once ready")
    starting.add_argument("--tls", action="store_true", help="serve the API over TLS, too")
    commands.add_parser("down")
    commands.add_parser("running", help="exit status 0 where a supervisor answers")
    asked = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup's wish is kept.
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, Wish.hear)
    try:
        settings = read_settings(os.environ, tls=asked.command == "up" and asked.tls)
        if asked.command == "running":
            return _running(settings)
        if asked.command == "up":
            settings.state_dir.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            os.chdir(settings.state_dir)
            return up(settings, os.environ, detach=asked.detach)
        if settings.state_dir.exists():
            os.chdir(settings.state_dir)
        return down(settings)
    except Stopped:
        return SHELL_INTERRUPTED if asked.command == "up" and asked.detach else 0
    except Trouble as trouble:
        sys.stderr.write(f"{trouble}\n")
        return SHELL_ERROR


def _running(settings: LocalSettings) -> int:
    if not settings.state_dir.exists():
        return SHELL_ERROR
    os.chdir(settings.state_dir)
    return 0 if Supervision(settings.state_dir).is_running() else SHELL_ERROR


if __name__ == "__main__":
    sys.exit(main())
