"""fal's own JavaScript client under node against the whole service, its addresses rewritten by its own middleware."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.test_fal_client import pngs
from tests.acceptance.test_modelslab_client import SIDE, downloaded
from tests.servers import needs
from tests.service import Service

PACKAGE = "@fal-ai/client@1.10.1"
SCRIPT = Path(__file__).parent.parent / "javascript" / "fal.mjs"
STEPS = 60
MAX_PREVIEW_CHARS = 50_000 * 4 // 3
MULTIPART_BYTES = 91 * 1024**2
INSTALL_SECONDS, RUN_SECONDS = 120, 60

Scenario = Callable[..., Any]


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder in which node finds the client; kept from one run of the tests to the next."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        needs("node with npm", "nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "inpaintd-tests" / PACKAGE.replace("/", "-")
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if done.returncode:
            needs(f"{PACKAGE} (npm cannot install it)", "npm, and a registry that it can reach")
        (folder / "installed").touch()
    shutil.copy(SCRIPT, folder / SCRIPT.name)
    return folder


@pytest.fixture
def scenario(service: Service, node_folder: Path) -> Scenario:
    """Runs one scenario of the script and answers what it saw."""

    def play(name: str, **given: Any) -> Any:
        picture, mask = (base64.b64encode(data).decode() for data in pngs())
        asked = {
            "model_name": "doodle",
            "prompt": "a red circle",
            "image_url": f"data:image/png;base64,{picture}",
            "mask_url": f"data:image/png;base64,{mask}",
            "num_inference_steps": STEPS,
            "seed": 7,
        }
        done = subprocess.run(
            ["node", SCRIPT.name, name],
            cwd=node_folder,
            env={**os.environ, "API": service.url, "FAL_KEY": service.key},
            input=json.dumps({"input": asked, "picture": picture, "mask": mask, **given}),
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return play


@pytest.mark.parametrize("mode", ["polling", "streaming", "proxy"])
def test_subscribe_sees_every_step_and_brings_the_output(scenario: Scenario, service: Service, mode: str) -> None:
    seen = scenario(mode)
    statuses = [update["status"] for update in seen["updates"]]
    assert "IN_PROGRESS" in statuses
    assert statuses[-1] == "COMPLETED"
    assert statuses == sorted(statuses, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert seen["updates"][-1]["logs"] == [f"step {step}/{STEPS}" for step in range(1, STEPS + 1)]
    assert any(update["logs"] for update in seen["updates"] if update["status"] == "IN_PROGRESS")
    assert seen["requestId"]
    assert seen["data"]["seed"] == 7
    url = seen["data"]["image"]["url"]
    assert url.startswith(service.url)
    assert downloaded(url).size == (SIDE, SIDE)


def test_run_waits_for_the_output(scenario: Scenario) -> None:
    answer = scenario("run")
    assert answer["requestId"]
    assert downloaded(answer["data"]["image"]["url"]).size == (SIDE, SIDE)


def test_stream_brings_every_step_and_then_the_output(scenario: Scenario) -> None:
    seen = scenario("stream")
    *steps, last = seen["events"]
    assert [(event["step"], event["num_steps"]) for event in steps] == [(n, STEPS) for n in range(1, STEPS + 1)]
    previews = [image["url"] for event in steps for image in event.get("images", ())]
    assert previews
    assert all(url.startswith("data:image/jpeg;base64,") and len(url) < MAX_PREVIEW_CHARS for url in previews)
    assert last == seen["done"]
    assert seen["done"]["image"]["width"] == SIDE
    assert seen["requestId"]


def test_a_running_request_is_cancelled(scenario: Scenario) -> None:
    seen = scenario("cancel")
    assert (seen["result"]["name"], seen["result"]["status"]) == ("ApiError", 499)
    assert seen["result"]["message"] == "Request was cancelled"
    assert seen["result"]["requestId"] == seen["requestId"]
    assert seen["again"]["status"] == 400


def test_blobs_are_uploaded_and_repainted(scenario: Scenario, service: Service) -> None:
    seen = scenario("upload")
    assert seen["image_url"].startswith(f"{service.url}/uploads/")
    assert requests.get(seen["image_url"], timeout=10).content == pngs()[0]
    assert downloaded(seen["data"]["image"]["url"]).size == (SIDE, SIDE)


def test_a_large_blob_is_uploaded_in_parts(scenario: Scenario) -> None:
    link = scenario("parts", bytes=MULTIPART_BYTES)["link"]
    with requests.get(link, timeout=30) as answer:
        assert len(answer.content) == MULTIPART_BYTES
        assert answer.content[:16] == answer.content[MULTIPART_BYTES // 16 * 16 - 16 :][:16] == b"inpaintd" * 2


def test_bad_input_is_a_validation_error_with_its_field(scenario: Scenario) -> None:
    seen = scenario("invalid")
    assert (seen["name"], seen["status"]) == ("ValidationError", 422)
    assert seen["fields"] == [["body", "seed"]]


def test_a_wrong_key_is_said_in_words(scenario: Scenario) -> None:
    seen = scenario("stranger")
    assert (seen["name"], seen["status"]) == ("ApiError", 401)
    assert seen["message"] == "No user found for Key ID and Secret"
