"""fal's own Python client against the whole service over TLS, with nothing changed but what its environment says."""

from __future__ import annotations

import asyncio
import base64
import gc
import importlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
from httpx_sse import SSEError
from PIL import Image, ImageChops
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests import removal_scene
from tests import stability_scene as red
from tests.acceptance.test_modelslab_client import HOLE, SIDE, scene
from tests.fal_clients import verified
from tests.service import Service

# The client never closes its connections.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

APP = "fal-ai/inpaint"
LONG_STEPS = 150
SLOW_SIDE = 128


@pytest.fixture(scope="module")
def fal(service: Service) -> Iterator[ModuleType]:
    """The client as it is imported in an environment of three lines."""
    host = service.tls_url.removeprefix("https://")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_RUN_HOST", f"{host}/run")
        patch.setenv("FAL_QUEUE_RUN_HOST", f"{host}/queue")
        patch.setenv("SSL_CERT_FILE", str(service.ca_file))
        patch.setenv("FAL_KEY", service.key)
        for name in [each for each in sys.modules if each.split(".")[0] == "fal_client"]:
            patch.delitem(sys.modules, name)
        yield importlib.import_module("fal_client")


@pytest.fixture
def client(fal: ModuleType) -> Iterator[Any]:
    yield fal.SyncClient()
    gc.collect()


def pngs() -> tuple[bytes, bytes]:
    encoded = []
    for picture in scene():
        raw = io.BytesIO()
        picture.save(raw, "PNG")
        encoded.append(raw.getvalue())
    return encoded[0], encoded[1]


def arguments(fal: ModuleType, **changes: Any) -> dict[str, Any]:
    picture, mask = (fal.encode(data, "image/png") for data in pngs())
    values = {
        "model_name": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "prompt": "a red circle",
        "image_url": picture,
        "mask_url": mask,
        "num_inference_steps": 6,
        "seed": 7,
    }
    return {**values, **changes}


def downloaded(service: Service, url: str) -> Image.Image:
    got = requests.get(url, verify=str(service.ca_file), timeout=10)
    got.raise_for_status()
    return Image.open(io.BytesIO(got.content))


def test_subscribe_prints_a_line_for_every_step(fal: ModuleType, client: Any, service: Service) -> None:
    lines: list[str] = []
    kinds = []

    def on_queue_update(update: Any) -> None:
        kinds.append(type(update).__name__)
        if isinstance(update, fal.InProgress):
            lines.extend(log["message"] for log in update.logs)

    asked = arguments(fal, num_inference_steps=LONG_STEPS)
    result = client.subscribe(APP, arguments=asked, with_logs=True, on_queue_update=on_queue_update)
    assert f"step 1/{LONG_STEPS}" in lines
    assert kinds[-1] == "Completed"
    image = result["image"]
    assert set(image) == {"url", "content_type", "file_name", "file_size", "width", "height"}
    assert result["seed"] == 7
    assert image["url"].startswith(f"{service.tls_url}/images/")
    got = requests.get(image["url"], verify=str(service.ca_file), timeout=10)
    assert (len(got.content), got.headers["Content-Type"]) == (image["file_size"], image["content_type"])
    painted = Image.open(io.BytesIO(got.content))
    assert painted.size == (image["width"], image["height"]) == (SIDE, SIDE)
    picture, mask = scene()
    kept = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(painted)[kept], np.asarray(picture)[kept])
    assert painted.crop(HOLE).tobytes() != picture.crop(HOLE).tobytes()


def test_red_is_seen_where_the_mask_is_white_and_nowhere_else(fal: ModuleType, client: Any, service: Service) -> None:
    mask = ImageChops.invert(red.mask())
    picture, hole = (f"data:image/png;base64,{red.encoded(each)}" for each in (red.picture(), mask))
    asked = {"prompt": "a red circle on a white background", "image_url": picture, "mask_url": hole}
    result = client.subscribe(APP, arguments=arguments(fal, num_inference_steps=20, **asked))
    red.assert_red_only_where(np.asarray(mask) == 255, np.asarray(downloaded(service, result["image"]["url"])))


def test_submit_status_and_result(fal: ModuleType, client: Any) -> None:
    handle = client.submit(APP, arguments=arguments(fal), priority="low", hint="any", start_timeout=60)
    assert isinstance(handle.status(with_logs=True), fal.Queued | fal.InProgress | fal.Completed)
    assert handle.get()["seed"] == 7
    done = client.status(APP, handle.request_id, with_logs=True)
    assert isinstance(done, fal.Completed)
    assert [log["message"] for log in done.logs] == [f"step {step}/6" for step in range(1, 7)]
    assert done.metrics["inference_time"] > 0
    assert client.result(APP, handle.request_id)["seed"] == 7


def test_a_running_request_is_cancelled_within_a_step_or_so_and_a_queued_one_at_once(
    fal: ModuleType, client: Any, service: Service
) -> None:
    big = Image.new("RGB", (2 * SLOW_SIDE, SLOW_SIDE), "steelblue")
    slow = arguments(fal, num_inference_steps=LONG_STEPS, image_url=fal.encode_image(big, "png"))
    # More than the worker holds at a time.
    handles = [client.submit(APP, arguments=slow) for _ in range(14)]
    running = next(each for each in handles if isinstance(until_started(fal, each), fal.InProgress))
    queued = next(each for each in reversed(handles) if isinstance(each.status(), fal.Queued))
    queued.cancel()
    assert isinstance(queued.status(), fal.Completed)
    running.cancel()
    asked_at = time.monotonic()
    while not isinstance(running.status(), fal.Completed):
        assert time.monotonic() - asked_at < 3
        time.sleep(0.02)
    for each in (queued, running):
        with pytest.raises(fal.FalClientHTTPError) as raised:
            each.get()
        assert (raised.value.status_code, raised.value.error_type) == (499, "client_cancelled")
        with pytest.raises(fal.FalClientHTTPError):
            each.cancel()
    for each in handles:
        if each not in (queued, running):
            client.cancel(APP, each.request_id)


def until_started(fal: ModuleType, handle: Any) -> Any:
    while isinstance(status := handle.status(with_logs=True), fal.Queued) or (
        isinstance(status, fal.InProgress) and not status.logs
    ):
        time.sleep(0.02)
    return status


def test_run_waits_for_the_output(fal: ModuleType, client: Any, service: Service) -> None:
    result = client.run(APP, arguments=arguments(fal), path="/sub", start_timeout=30, hint="any")
    assert downloaded(service, result["image"]["url"]).size == (SIDE, SIDE)


def test_without_a_prompt_a_thing_is_taken_away(fal: ModuleType, client: Any, service: Service) -> None:
    picture, mask = removal_scene.data_uris()
    asked = {"model_name": "remove", "prompt": "", "image_url": picture, "mask_url": mask}
    result = client.run(APP, arguments=asked)
    removal_scene.assert_gone(np.asarray(downloaded(service, result["image"]["url"])))


def test_with_an_empty_prompt_doodle_continues_the_surroundings(fal: ModuleType, client: Any, service: Service) -> None:
    sky = Image.new("RGB", (SIDE, SIDE), (120, 180, 240))
    marked, mask = sky.copy(), Image.new("L", (SIDE, SIDE))
    marked.paste((215, 30, 35), HOLE)
    mask.paste(255, HOLE)
    urls = {name: fal.encode_image(each, "png") for name, each in (("image_url", marked), ("mask_url", mask))}
    result = client.run(APP, arguments=arguments(fal, prompt="", num_inference_steps=20, **urls))
    # Within the rim where the old shines through.
    inner = (HOLE[0] + 8, HOLE[1] + 8, HOLE[2] - 8, HOLE[3] - 8)
    painted = downloaded(service, result["image"]["url"]).crop(inner)
    assert np.abs(np.asarray(painted).astype(int) - np.asarray(sky.crop(inner))).mean() < 15


def test_no_steps_give_the_input_back(fal: ModuleType, client: Any, service: Service) -> None:
    result = client.run(APP, arguments=arguments(fal, num_inference_steps=0))
    assert downloaded(service, result["image"]["url"]).tobytes() == scene()[0].tobytes()


def test_stream_brings_every_step_and_then_the_output(fal: ModuleType, client: Any) -> None:
    events = list(client.stream(APP, arguments=arguments(fal)))
    assert [(event["step"], event["num_steps"]) for event in events[:-1]] == [(step, 6) for step in range(1, 7)]
    assert set(events[-1]) == {"image", "seed"}
    assert events[-1]["image"]["width"] == SIDE


def test_stream_shows_the_picture_in_the_making(fal: ModuleType, client: Any) -> None:
    *events, result = client.stream(APP, arguments=arguments(fal, num_inference_steps=LONG_STEPS))
    shown = [image for event in events for image in event.get("images", ())]
    assert shown
    picture, mask = scene()
    for image in shown:
        kind, _, data = image["url"].partition(";base64,")
        jpeg = base64.b64decode(data)
        assert (kind, image["content_type"], len(jpeg) < 50_000) == ("data:image/jpeg", "image/jpeg", True)
        preview = Image.open(io.BytesIO(jpeg))
        assert preview.size == (image["width"], image["height"])
        kept = np.asarray(mask.resize(preview.size, Image.Resampling.BOX)) == 0
        # What is not repainted is the picture's from the first: but for the JPEG, whose blocks mix what is near, and
        # for having been enlarged to what the model works at.
        wrong = np.abs(np.asarray(preview, float) - np.asarray(picture.resize(preview.size, Image.Resampling.BOX)))
        assert np.median(wrong[kept]) < 12
    assert [event["step"] for event in events] == list(range(1, LONG_STEPS + 1))
    assert set(result) == {"image", "seed"}


def test_the_asynchronous_client_is_served_too(fal: ModuleType) -> None:
    async def inpaint() -> Any:
        client = fal.AsyncClient()
        handle = await client.submit(APP, arguments=arguments(fal))
        return await handle.get()

    assert asyncio.run(inpaint())["seed"] == 7


# -- uploads ----------------------------------------------------------------------------------------


@pytest.fixture
def uploading(fal: ModuleType, service: Service, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The client with its two host constants set, for which it has no setting."""
    module = importlib.import_module("fal_client.client")
    monkeypatch.setattr(module, "REST_URL", f"{service.tls_url}/rest")
    monkeypatch.setattr(module, "CDN_URL", f"{service.tls_url}/cdn")
    return fal


@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_an_uploaded_file_is_a_picture_to_repaint(
    uploading: ModuleType, client: Any, service: Service, tmp_path: Path, repository: str
) -> None:
    fal, links = uploading, []
    for name, data in zip(("picture.png", "mask.png"), pngs(), strict=True):
        (tmp_path / name).write_bytes(data)
        links.append(client.upload_file(tmp_path / name, repository=repository))
    assert all(link.startswith(f"{service.tls_url}/uploads/") for link in links)
    asked = arguments(fal, image_url=links[0], mask_url=links[1])
    result = client.run(APP, arguments=asked)
    again = client.run(APP, arguments=arguments(fal))
    painted, same = (downloaded(service, each["image"]["url"]) for each in (result, again))
    assert painted.tobytes() == same.tobytes()


def test_a_large_file_is_uploaded_in_parts(
    uploading: ModuleType, client: Any, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_client.client.MULTIPART_THRESHOLD", 1000)
    monkeypatch.setattr("fal_client.client.MULTIPART_CHUNK_SIZE", 1000)
    data = pngs()[0] * 10
    (tmp_path / "large.bin").write_bytes(data)
    for link in (client.upload_file(tmp_path / "large.bin"), client.upload(data, "image/png")):
        assert requests.get(link, verify=str(service.ca_file), timeout=10).content == data


def test_links_given_out_over_tls_are_pictures_without_it_too(
    uploading: ModuleType, client: Any, service: Service
) -> None:
    fal = uploading
    link = client.upload(pngs()[0], "image/png")
    made = client.run(APP, arguments=arguments(fal))["image"]["url"]
    for url in (link, made, made.replace("127.0.0.1", "localhost")):
        answer = requests.post(
            f"{service.url}/run/{APP}",
            json=arguments(fal, image_url=url),
            headers={"Authorization": f"Key {service.key}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["image"]["url"].startswith(f"{service.url}/images/")


# -- webhooks ---------------------------------------------------------------------------------------


def test_the_webhook_brings_the_output_under_fals_signature(
    fal: ModuleType, client: Any, service: Service, httpserver: HTTPServer
) -> None:
    received: list[tuple[dict[str, str], bytes]] = []

    def receive(request: Request) -> Response:
        received.append(({name.lower(): value for name, value in request.headers.items()}, request.data))
        return Response(status=204)

    httpserver.expect_request("/hook", method="POST").respond_with_handler(receive)
    handle = client.submit(APP, arguments=arguments(fal), webhook_url=httpserver.url_for("/hook?order=1"))
    result = handle.get()
    until = time.monotonic() + 30
    while not received and time.monotonic() < until:
        time.sleep(0.05)
    headers, body = received[0]
    told = json.loads(body)
    assert (told["request_id"], told["status"], told["payload"]) == (handle.request_id, "OK", result)
    jwks = requests.get(f"{service.tls_url}/.well-known/jwks.json", verify=str(service.ca_file), timeout=10).json()
    assert verified(headers, body, jwks)


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["run", "subscribe"])
def test_bad_input_is_raised_with_its_field(fal: ModuleType, client: Any, way: str) -> None:
    asked = arguments(fal, num_inference_steps=999)
    with pytest.raises(fal.FalClientHTTPError) as raised:
        getattr(client, way)(APP, arguments=asked)
    assert raised.value.status_code == 422
    (row,) = raised.value.response.json()["detail"]
    assert row["loc"] == ["body", "num_inference_steps"]
    assert row["type"] == "less_than_equal"


def test_bad_input_of_a_stream_is_no_stream(fal: ModuleType, client: Any) -> None:
    # All that the client looks at is the Content-Type.
    with pytest.raises(SSEError, match="application/json"):
        list(client.stream(APP, arguments=arguments(fal, num_inference_steps=999)))


def test_a_picture_that_is_none_is_raised_at_the_result(fal: ModuleType, client: Any) -> None:
    handle = client.submit(APP, arguments=arguments(fal, mask_url=fal.encode(b"\x89PNG\r\n\x1a\nbroken", "image/png")))
    with pytest.raises(fal.FalClientHTTPError) as raised:
        handle.get()
    assert raised.value.status_code == 422
    assert raised.value.response.json()["detail"][0]["loc"] == ["body", "mask_url"]


def test_a_wrong_key_and_an_unknown_application_are_raised_at_the_submit(fal: ModuleType, client: Any) -> None:
    stranger = fal.SyncClient(key="wrong")
    with pytest.raises(fal.FalClientHTTPError) as raised:
        stranger.submit(APP, arguments={})
    assert raised.value.status_code == 401
    with pytest.raises(fal.FalClientHTTPError, match="not found") as raised:
        client.submit("fal-ai/flux", arguments={})
    assert raised.value.status_code == 404


def test_a_start_timeout_is_raised_and_not_tried_again(fal: ModuleType, client: Any, service: Service) -> None:
    service.supervisorctl("stop", "worker")
    try:
        with pytest.raises(fal.FalClientHTTPError) as raised:
            client.run(APP, arguments=arguments(fal), start_timeout=1.5)
        assert (raised.value.status_code, raised.value.error_type) == (504, "request_timeout")
        handle = client.submit(APP, arguments=arguments(fal), start_timeout=1.5)
        with pytest.raises(fal.FalClientHTTPError) as raised:
            handle.get()
        assert raised.value.response_headers["x-fal-request-timeout-type"] == "user"
    finally:
        service.supervisorctl("start", "worker")
