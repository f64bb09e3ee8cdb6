"""The first client of a fresh installation: has a thing taken out of a picture through the HTTP API."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

from deploy.parts import Trouble

SAMPLE_DIR = Path(__file__).parent / "sample"
PHOTOGRAPH_DIR = Path(__file__).parent / "pictures"
MODEL = "remove"
WIDTH, HEIGHT = 384, 256
SEED = 4
REQUEST_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.1
BAR_WIDTH = 20


class KeyRefused(Trouble):
    """The API does not know the key: its Redis is another one than when the key was made."""


@dataclass(frozen=True, kw_only=True)
class FirstPicture:
    url: str
    file: Path
    seconds: float


def call(url: str, *, key: str | None = None, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """HTTP status and JSON answer. Raises OSError where nobody answers."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    response = _exchange("GET" if body is None else "POST", url, json=body, headers=headers)
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, {"message": response.text}


def _exchange(method: str, url: str, **options: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # the environment's proxies are for the world outside; our own API is on loopback
        return session.request(method, url, timeout=REQUEST_TIMEOUT_SECONDS, **options)


def paint(api_url: str, key: str, *, file: Path, deadline: float, show: Callable[[str], None]) -> FirstPicture:
    """Submit the sample, follow it until it is done and save its picture. `deadline` is of time.monotonic()."""
    started = time.monotonic()
    submitted = _submit(api_url, key)
    url = submitted["future_links"][0]
    while True:
        status, job = call(f"{api_url}/jobs/{submitted['id']}", key=key)
        if status != HTTPStatus.OK:
            raise Trouble(f"The sample job cannot be followed: HTTP {status}: {job}")
        if job["status"] in ("failed", "cancelled"):
            raise Trouble(f"The sample job {job['status']}: {job.get('failure') or job}")
        if job["status"] == "succeeded":
            break
        if time.monotonic() > deadline:
            raise Trouble(f"The sample job is still {job['status']}.")
        show(_told(job))
        time.sleep(POLL_SECONDS)
    # PUBLIC_URL may be an address that only clients reach.
    near_url = f"{api_url}/images/{url.rpartition('/images/')[2]}"
    try:
        response = _exchange("GET", near_url)
        response.raise_for_status()
    except requests.RequestException as error:
        raise Trouble(f"The sample's result cannot be fetched from {near_url}: {error}") from error
    file.write_bytes(response.content)
    return FirstPicture(url=url, file=file, seconds=time.monotonic() - started)


def _submit(api_url: str, key: str) -> Any:
    status, answer = call(
        f"{api_url}/api/v6/realtime/inpaint",
        key=key,
        body={
            "model_id": MODEL,
            "init_image": data_uri(PHOTOGRAPH_DIR / "photograph.png"),
            "mask_image": data_uri(PHOTOGRAPH_DIR / "mask.png"),
            "width": WIDTH,
            "height": HEIGHT,
            "seed": SEED,
            "instant_response": True,
        },
    )
    if status == HTTPStatus.UNAUTHORIZED:
        raise KeyRefused("The API does not know the key.")
    if status != HTTPStatus.OK or answer.get("status") not in ("processing", "success"):
        raise Trouble(f"The sample picture was not accepted: HTTP {status}: {answer}")
    return answer


def _told(job: Mapping[str, Any]) -> str:
    progress = job.get("progress") or {}
    step, num_steps = progress.get("step", 0), progress.get("steps", 0)
    if job["status"] == "queued" or not num_steps:
        return f"sample picture: {job['status']}"
    filled = round(BAR_WIDTH * step / num_steps)
    return f"sample picture: [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] step {step} of {num_steps}"


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
