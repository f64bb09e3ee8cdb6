"""For tests of the fal dialect: its requests as plain HTTP, and steps as a worker's clerk reports them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from storage.job import InpaintJob
from storage.job_store import Beat
from tests.front_end import PICTURE, FrontEnd

APP = "/queue/fal-ai/inpaint"
DATA_URI = f"data:image/png;base64,{PICTURE}"


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def fal_input(**changes: Any) -> dict[str, Any]:
    values = {"model_name": "doodle", "prompt": "a red circle", "image_url": DATA_URI, "mask_url": DATA_URI}
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


class Fal:
    """Speaks to a front end as its clients do."""

    def __init__(self, front_end: FrontEnd, key: str | None = None) -> None:
        self.front_end = front_end
        self.client: FlaskClient = front_end.client
        self.headers = {"Authorization": f"Key {key or front_end.key}"}

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {**self.headers, **options.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **options)

    def submit(self, *, query: str = "", headers: dict[str, str] | None = None, **changes: Any) -> str:
        answer = self.call("POST", APP + query, json=fal_input(**changes), headers=headers or {})
        assert answer.status_code == 200, answer.text
        request_id: str = answer.get_json()["request_id"]
        return request_id

    def status(self, request_id: str, query: str = "") -> TestResponse:
        return self.call("GET", f"{APP}/requests/{request_id}/status{query}")

    def result(self, request_id: str) -> TestResponse:
        return self.call("GET", f"{APP}/requests/{request_id}")

    def cancel(self, request_id: str) -> TestResponse:
        return self.call("PUT", f"{APP}/requests/{request_id}/cancel")

    def claimed(self) -> InpaintJob:
        job = self.front_end.parts.jobs.claim_next(worker="fake")
        assert job is not None
        return job

    def beat(self, job: InpaintJob, step: int, num_steps: int) -> None:
        self.front_end.parts.jobs.heartbeat([Beat(job.job_id, job.fence, step, num_steps)])

    def finish(self, job: InpaintJob, num_steps: int = 0) -> None:
        ended = self.front_end.painted(job)
        assert self.front_end.parts.jobs.finish(
            job.succeeded(ended.images, at=self.front_end.parts.jobs.now(), num_steps=num_steps, notes=ended.notes)
        )


def verified(headers: Mapping[str, str], body: bytes, jwks: Mapping[str, Any]) -> bool:
    """What fal's documentation tells receivers to do; every key is tried."""
    timestamp = headers["x-fal-webhook-timestamp"]
    if abs(time.time() - int(timestamp)) > 300:
        return False
    names = ("x-fal-webhook-request-id", "x-fal-webhook-user-id")
    message = "\n".join([*(headers[name] for name in names), timestamp, hashlib.sha256(body).hexdigest()])
    for key in jwks["keys"]:
        x = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
        try:
            signature = bytes.fromhex(headers["x-fal-webhook-signature"])
            Ed25519PublicKey.from_public_bytes(x).verify(signature, message.encode())
        except InvalidSignature:
            continue
        return True
    return False
