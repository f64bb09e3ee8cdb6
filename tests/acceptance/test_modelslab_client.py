"""The vendor's own Python client against the whole service, with nothing changed but its address."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, ImageChops, ImageDraw
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests import removal_scene
from tests import stability_scene as red
from tests.service import Service, service

__all__ = ["service"]

# The client still calls pydantic's older methods.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIDE = 96
HOLE = (32, 32, 64, 64)


@pytest.fixture(scope="module")
def modelslab() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (
            "core.client",
            "core.apis.realtime",
            "core.apis.community",
            "schemas.realtime",
            "schemas.community",
        ):
            importlib.import_module(f"modelslab_py.{name}")
        return importlib.import_module("modelslab_py")


def encoded(picture: Image.Image) -> str:
    raw = io.BytesIO()
    picture.save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()


def scene() -> tuple[Image.Image, Image.Image]:
    """A picture of stripes, and a mask with a white hole."""
    picture = Image.new("RGB", (SIDE, SIDE), "steelblue")
    for x in range(0, SIDE, 8):
        ImageDraw.Draw(picture).line((x, 0, x, SIDE), fill=(200, 180, x))
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).rectangle(HOLE, fill=255)
    return picture, mask


def a_schema(modelslab: ModuleType, kind: str, **changes: Any) -> Any:
    picture, mask = scene()
    values = {
        "prompt": "a red circle",
        "init_image": encoded(picture),
        "mask_image": encoded(mask),
        "width": SIDE,
        "height": SIDE,
        "samples": 1,
        "num_inference_steps": 4,
        "seed": 7,
        **changes,
    }
    schemas = modelslab.schemas
    if kind == "realtime":
        return schemas.realtime.RealtimeInpaintingSchema(**values)
    return schemas.community.Inpainting(model_id="lazymixv4-inpaint", **values)


def a_client(modelslab: ModuleType, service: Service, key: str | None = None) -> Any:
    client = modelslab.core.client.Client(key or service.key, fetch_retry=60, fetch_timeout=1)
    # Its APIs copy the address when they are made, so it is set first.
    client.base_url = f"{service.url}/api/"
    return client


def apis(modelslab: ModuleType, client: Any) -> dict[str, Any]:
    return {
        "realtime": modelslab.core.apis.realtime.Realtime(client=client),
        "community": modelslab.core.apis.community.Community(client=client),
    }


def finished(api: Any, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer once the job is over: the client polls until then."""
    if answer["status"] == "success":
        return answer
    assert answer["status"] == "processing", answer
    fetched: dict[str, Any] = api.fetch(str(answer["id"]))
    return fetched


def downloaded(link: str) -> Image.Image:
    got = requests.get(link, timeout=10)
    got.raise_for_status()
    return Image.open(io.BytesIO(got.content))


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]  # RGB has three


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("kind", ["realtime", "community"])
def test_a_picture_is_inpainted_through_the_clients_own_methods(
    modelslab: ModuleType, service: Service, kind: str
) -> None:
    api = apis(modelslab, a_client(modelslab, service))[kind]
    answer = finished(api, api.inpainting(a_schema(modelslab, kind)))
    assert answer["status"] == "success"
    assert answer["meta"]["model_id"] == "doodle"
    assert answer["meta"]["seed"] == 7
    result = downloaded(answer["output"][0])
    assert (result.format, result.mode, result.size) == ("PNG", "RGB", (SIDE, SIDE))
    picture, mask = scene()
    kept = [mask.getpixel((x, y)) == 0 for y in range(SIDE) for x in range(SIDE)]
    pixels = zip(kept, list(result.getdata()), list(picture.getdata()), strict=True)
    changed = [before != after for is_kept, after, before in pixels if is_kept]
    assert not any(changed)
    assert result.crop(HOLE).tobytes() != picture.crop(HOLE).tobytes()


RED = "a red circle on a white background"


@pytest.mark.parametrize("kind", ["realtime", "community"])
def test_red_is_seen_where_the_mask_is_white_and_nowhere_else(
    modelslab: ModuleType, service: Service, kind: str
) -> None:
    mask = ImageChops.invert(red.mask())
    pictures = {
        "init_image": encoded(red.picture()),
        "mask_image": encoded(mask),
        "width": red.SIDE,
        "height": red.SIDE,
    }
    api = apis(modelslab, a_client(modelslab, service))[kind]
    answer = finished(api, api.inpainting(a_schema(modelslab, kind, prompt=RED, num_inference_steps=20, **pictures)))
    red.assert_red_only_where(np.asarray(mask) == 255, np.asarray(downloaded(answer["output"][0])))


def test_red_is_seen_through_stable_diffusion_v3_and_strange_words_are_named(service: Service) -> None:
    mask = ImageChops.invert(red.mask())
    body = {"key": service.key, "prompt": f"{RED}, zebra", "width": red.SIDE, "height": red.SIDE, "seed": 7}
    pictures = {"init_image": encoded(red.picture()), "mask_image": encoded(mask)}
    answer = requests.post(f"{service.url}/api/v3/inpaint", json=body | pictures, timeout=60).json()
    assert answer["status"] == "success", answer
    assert answer["meta"]["unknown_words"] == ["zebra"]
    red.assert_red_only_where(np.asarray(mask) == 255, np.asarray(downloaded(answer["output"][0])))


@pytest.mark.parametrize("kind", ["realtime", "community"])
def test_without_a_prompt_a_thing_is_taken_away(modelslab: ModuleType, service: Service, kind: str) -> None:
    api = apis(modelslab, a_client(modelslab, service))[kind]
    picture, mask = removal_scene.data_uris()
    asked = a_schema(modelslab, kind, prompt="", init_image=picture, mask_image=mask)
    asked.model_id = "remove"
    answer = finished(api, api.inpainting(asked))
    assert answer["meta"]["model_id"] == "remove"
    assert "num_inference_steps" in answer["meta"]["ignored"]
    removal_scene.assert_gone(np.asarray(downloaded(answer["output"][0])))


def test_v3_takes_a_thing_away_without_a_prompt(service: Service) -> None:
    picture, mask = removal_scene.data_uris()
    sizes = {"width": removal_scene.SIDE, "height": removal_scene.SIDE}
    body = {"key": service.key, "model_id": "remove", "init_image": picture, "mask_image": mask, **sizes}
    answer = requests.post(f"{service.url}/api/v3/inpaint", json=body, timeout=30).json()
    assert answer["status"] == "success"
    removal_scene.assert_gone(np.asarray(downloaded(answer["output"][0])))


def test_the_client_polls_until_a_job_answered_at_once_is_done(modelslab: ModuleType, service: Service) -> None:
    api = apis(modelslab, a_client(modelslab, service))["realtime"]
    answer = api.inpainting(a_schema(modelslab, "realtime", instant_response=True, samples=2))
    assert answer["status"] == "processing"
    assert answer["eta"] >= 1
    assert answer["fetch_result"] == f"{service.url}/api/v6/realtime/fetch/{answer['id']}"
    fetched = api.fetch(str(answer["id"]))
    assert fetched["status"] == "success"
    assert fetched["output"] == answer["future_links"]
    assert [downloaded(link).size for link in fetched["output"]] == [(SIDE, SIDE)] * 2


def test_the_same_seed_gives_the_same_picture_and_the_second_can_be_made_alone(
    modelslab: ModuleType, service: Service
) -> None:
    api = apis(modelslab, a_client(modelslab, service))["realtime"]
    pair = finished(api, api.inpainting(a_schema(modelslab, "realtime", samples=2)))["output"]
    alone = finished(api, api.inpainting(a_schema(modelslab, "realtime", seed=8)))["output"]
    first, second, again = (downloaded(link) for link in (*pair, *alone))
    # Painted in one batch or alone, the last bits may differ.
    assert largest_difference(second, again) <= 3
    assert largest_difference(first, second) > 30


def test_the_asynchronous_client_is_served_too(modelslab: ModuleType, service: Service) -> None:
    async def inpaint() -> dict[str, Any]:
        async with a_client(modelslab, service) as client:
            api = apis(modelslab, client)["realtime"]
            client.fetch_timeout = 60
            answer: dict[str, Any] = await api.async_inpainting(a_schema(modelslab, "realtime"))
            if answer["status"] == "processing":
                answer = await api.async_fetch(str(answer["id"]))
            return answer

    assert asyncio.run(inpaint())["status"] == "success"


def test_the_webhook_tells_the_client_with_its_track_id(
    modelslab: ModuleType, service: Service, httpserver: HTTPServer
) -> None:
    received: list[tuple[dict[str, Any], Any]] = []

    def receive(request: Request) -> Response:
        received.append((json.loads(request.data), dict(request.headers)))
        return Response(status=204)

    httpserver.expect_request("/hook", method="POST").respond_with_handler(receive)
    api = apis(modelslab, a_client(modelslab, service))["realtime"]
    hook = httpserver.url_for("/hook")
    answer = finished(api, api.inpainting(a_schema(modelslab, "realtime", webhook=hook, track_id="order-1")))
    assert until(lambda: received)
    body, headers = received[0]
    assert (body["status"], body["id"], body["track_id"]) == ("success", answer["id"], "order-1")
    assert body["output"] == answer["output"]
    assert "Webhook-Signature" in headers


def test_a_wrong_key_is_raised_by_the_client(modelslab: ModuleType, service: Service) -> None:
    api = apis(modelslab, a_client(modelslab, service, key="wrong"))["realtime"]
    with pytest.raises(Exception, match=r"status code 401.*Invalid API key"):
        api.inpainting(a_schema(modelslab, "realtime"))


def test_what_is_refused_is_raised_with_the_field(modelslab: ModuleType, service: Service) -> None:
    api = apis(modelslab, a_client(modelslab, service))["community"]
    with pytest.raises(Exception, match=r"status code 400.*lora_model not found: a"):
        api.inpainting(a_schema(modelslab, "community", lora_model="a,b"))


def test_a_picture_that_cannot_be_fetched_ends_as_an_error(
    modelslab: ModuleType, service: Service, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/gone.png").respond_with_data(status=404)
    schema = a_schema(modelslab, "realtime", init_image=httpserver.url_for("/gone.png"))
    answer = apis(modelslab, a_client(modelslab, service))["realtime"].inpainting(schema)
    assert answer["status"] == "error"
    assert "init_image" in answer["message"]
    assert isinstance(answer["id"], int)
