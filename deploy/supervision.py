"""The supervisor of one state folder: started, asked and stopped, with a look at what it would leave behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from deploy.parts import MARK, SOURCE_DIR, Trouble

SOCKET_NAME = "supervisor.sock"
REDIS = "redis"
START_TIMEOUT_SECONDS = 15.0
STOP_TIMEOUT_SECONDS = 90.0
LAST_WORDS_SECONDS = 5.0
POLL_SECONDS = 0.05
NOT_RUNNING = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Part:
    """One supervised program. `stopped_at` is the time of its last end, in seconds since the epoch, 0 for none."""

    name: str
    state: str
    pid: int
    stopped_at: int
    description: str


class Supervision:
    """Speaks with the supervisor through its socket. The current directory must be `state_dir`.

    A socket's path may have 107 bytes at most; a relative one always fits.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the supervisor and with it every part. It outlives this process."""
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration"]
        command.append(str(SOURCE_DIR / "deploy" / "supervisord.conf"))
        if os.getuid() == 0:
            command += ["--user", "root"]  # unsaid, supervisord warns about it at each start
        output = self._state_dir / "logs" / "supervisord.out"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self._state_dir,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.is_running():
            if process.poll() is not None:
                raise Trouble(f"The supervisor does not start:\n{output.read_text(errors='replace').strip()}")
            if time.monotonic() > deadline:
                raise Trouble(f"The supervisor does not answer; see {output}.")
            time.sleep(POLL_SECONDS)

    def is_running(self) -> bool:
        try:
            return bool(self._ask().getState())
        except Fault:
            return True  # on its way out
        except NOT_RUNNING:
            return False

    def parts(self) -> list[Part]:
        """Empty where no supervisor runs."""
        try:
            told = self._ask().getAllProcessInfo()
        except (Fault, *NOT_RUNNING):
            return []
        return [
            Part(each["name"], each["statename"], each["pid"], each["stop"], each["description"])
            for each in told
            if each["statename"] != "STOPPED"
        ]

    def stop(self, say: Callable[[str], None]) -> None:
        """Stop all parts and the supervisor, and wait until no process of theirs is left."""
        with contextlib.suppress(Fault, *NOT_RUNNING):
            self._stop_in_order()
            deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            deadline = time.monotonic() + LAST_WORDS_SECONDS
            while self.leftovers() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self.end_leftovers(say)

    def leftovers(self) -> dict[int, str]:
        """pid -> command of every live process that a supervisor of this state folder started, itself included."""
        return {
            int(folder.name): _command(folder)
            for folder in Path("/proc").iterdir()
            if folder.name.isdecimal() and self._is_ours(folder)
        }

    def end_leftovers(self, say: Callable[[str], None]) -> None:
        """End what a killed supervisor left running: first asked to, then at once."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            left = self.leftovers()
            for pid, command in left.items():
                say(f"Ending {command} (process {pid}), which its supervisor left behind.")
                self._send(pid, ending)
            deadline = time.monotonic() + (STOP_TIMEOUT_SECONDS if ending == signal.SIGTERM else 5.0)
            while left and self.leftovers() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        if self.leftovers():
            raise Trouble(f"These processes do not end: {self.leftovers()}.")

    def _stop_in_order(self) -> None:
        """All but Redis at the same time, then Redis and the supervisor: leases are given back meanwhile."""
        supervisor = self._ask()
        if not supervisor.getState():
            return
        stopping = [part.name for part in self.parts() if part.name != REDIS]
        for name in stopping:
            with contextlib.suppress(Fault):  # one that does not run just now
                supervisor.stopProcess(name, False)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while any(part.name in stopping and part.pid for part in self.parts()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        supervisor.shutdown()

    def _ask(self) -> Any:
        # A new connection each time: a kept one would outlive its supervisor.
        transport = SupervisorTransport(None, None, f"unix://{SOCKET_NAME}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _is_ours(self, folder: Path) -> bool:
        try:
            marks = (folder / "environ").read_bytes().split(b"\0")
            if f"{MARK}={self._state_dir}".encode() in marks:
                return True
            # redis-server writes its title over its environment: known by its program and its folder.
            in_its_folder = (folder / "cwd").readlink() == self._state_dir / REDIS
            return in_its_folder and (folder / "comm").read_text().startswith("redis-server")
        except OSError:
            return False  # another user's, or gone

    def _send(self, pid: int, ending: signal.Signals) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # Asked again under the handle: a number may have passed on to a stranger's process.
            if self._is_ours(Path("/proc") / str(pid)):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, ending)
        finally:
            os.close(handle)


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "a process"
