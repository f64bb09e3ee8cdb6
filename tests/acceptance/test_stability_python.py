"""Stability's own Python client, unmodified, against the whole service: plaintext, TLS with key, its command line."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from api.dialects.stability.proto import generation_pb2 as wire
from tests import removal_scene
from tests.clients_of_others import python_package
from tests.service import SOURCE_DIR, Service, service
from tests.stability import Channel, a_request, pictures, text
from tests.stability_scene import SIDE, assert_red_in_the_black_part_only, encoded, mask, picture, pixels

__all__ = ["service"]

SDK = "stability-sdk==0.8.6"
DRIVER = Path(__file__).parents[1] / "drivers" / "stability_python.py"
RED = {"prompt": "a red circle on a white background", "width": SIDE, "height": SIDE}
CALL_SECONDS = 60


@pytest.fixture(scope="module")
def sdk() -> Path:
    return python_package(SDK)


def environment(sdk: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(sdk), "PYTHONWARNINGS": "ignore", "GRPC_VERBOSITY": "NONE", **more}


def drive(sdk: Path, do: str, host: str, key: str, *, env: dict[str, str] | None = None, **asked: Any) -> Any:
    """What the client returned or raised, told by a process of its own."""
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps({"do": do, "host": host, "key": key, **asked}),
        env=environment(sdk, **(env or {})),
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def generated(sdk: Path, host: str, key: str, env: dict[str, str] | None = None, **options: Any) -> Any:
    asked = {"init": encoded(picture()), "mask": encoded(mask()), **RED, **options}
    told = drive(sdk, "generate", host, key, env=env, **asked)
    assert "returned" in told, told
    return told["returned"]


def test_what_is_black_in_the_mask_is_repainted_and_what_is_white_stays(sdk: Path, service: Service) -> None:
    told = generated(sdk, service.grpc_host, "", seed=7)
    (made,) = told["pictures"]
    assert (made["seed"], made["finish_reason"]) == (7, 0)
    assert made["path"].endswith(".png")
    assert told["classified"] == 1
    assert_red_in_the_black_part_only(pixels(made["png"]))


def test_over_tls_the_client_sends_its_key(sdk: Path, service: Service) -> None:
    trusting = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(service.ca_file)}
    told = generated(sdk, service.grpc_tls_host, service.key, trusting, seed=7)
    assert_red_in_the_black_part_only(pixels(told["pictures"][0]["png"]))

    asked = {"init": encoded(picture()), "mask": encoded(mask()), **RED}
    refused = drive(sdk, "generate", service.grpc_tls_host, "wrong", env=trusting, **asked)
    assert (refused["code"], refused["details"]) == ("UNAUTHENTICATED", "the API key is not valid")


def test_every_sample_comes_in_an_answer_of_its_own_with_the_seed_that_makes_it_again(
    sdk: Path, service: Service
) -> None:
    together = generated(sdk, service.grpc_host, "", seed=41, samples=3)["pictures"]
    assert [each["seed"] for each in together] == [41, 42, 43]
    (alone,) = generated(sdk, service.grpc_host, "", seed=43)["pictures"]
    difference = np.abs(pixels(alone["png"]).astype(int) - pixels(together[2]["png"]))
    # Painted in one batch or alone, the last bits may differ.
    assert difference.max() <= 3
    assert np.abs(pixels(together[0]["png"]).astype(int) - pixels(together[2]["png"])).max() > 30


def test_the_clients_own_defaults_and_every_option_are_taken(sdk: Path, service: Service) -> None:
    defaults = drive(
        sdk, "generate", service.grpc_host, "", init=encoded(picture()), mask=encoded(mask()), prompt="a red circle"
    )
    assert pixels(defaults["returned"]["pictures"][0]["png"]).shape == (1024, 1024, 3)
    told = generated(
        sdk,
        service.grpc_host,
        "",
        prompt=[["a red circle", 1.0], ["a white background", 0.5], ["blue", -1.0]],
        engine="stable-inpainting-512-v2-0",
        sampler="k_heun",
        steps=150,
        cfg_scale=35.0,
        start_schedule=0.9,
        guidance_preset=4,
        guidance_models=["ViT-L-14--openai"],
        style_preset="photographic",
        width=100,
        height=77,
        seed=[5, 9],
        samples=2,
    )
    assert [each["seed"] for each in told["pictures"]] == [5, 9]
    assert pixels(told["pictures"][0]["png"]).shape == (77, 100, 3)


def test_errors_have_the_codes_that_the_client_knows(sdk: Path, service: Service) -> None:
    asked = {"init": encoded(picture()), "mask": encoded(mask()), **RED}
    unknown = drive(sdk, "generate", service.grpc_host, "", **{**asked, "engine": "nope"})
    assert (unknown["code"], unknown["details"]) == ("NOT_FOUND", "The specified engine (ID nope) was not found.")
    many = drive(sdk, "generate", service.grpc_host, "", **{**asked, "samples": 11})
    assert (many["code"], many["details"]) == ("INVALID_ARGUMENT", "samples must be between 1 and 10")


def test_the_context_inpaints_and_reads_its_balance(sdk: Path, service: Service) -> None:
    told = drive(
        sdk,
        "inpaint",
        service.grpc_host,
        service.key,
        init=encoded(picture()),
        mask=encoded(mask()),
        prompt="a red circle on a white background",
        seed=7,
        steps=20,
        init_strength=0.0,
    )
    assert "returned" in told, told
    assert told["returned"]["kinds"] == [1, 6]
    assert_red_in_the_black_part_only(pixels(told["returned"]["pictures"][0]))
    balance, _ = drive(sdk, "user_info", service.grpc_host, service.key)["returned"]
    assert balance == 100_000_000.0


def test_the_command_line_writes_the_picture(sdk: Path, service: Service, tmp_path: Path) -> None:
    picture().save(tmp_path / "init.png")
    mask().save(tmp_path / "mask.png")
    command = [sys.executable, "-m", "stability_sdk", "generate", "-W", str(SIDE), "-H", str(SIDE), "-s", "20"]
    command += ["-A", "k_euler", "-S", "7", "-e", "stable-inpainting-512-v2-0", "-i", "init.png", "-m", "mask.png"]
    command += ["--start_schedule", "1.0", "a red circle on a white background"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(sdk, STABILITY_HOST=service.grpc_host, STABILITY_KEY="unused"),
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (written,) = [path for path in tmp_path.glob("*.png") if path.name not in ("init.png", "mask.png")]
    assert_red_in_the_black_part_only(pixels(base64.b64encode(written.read_bytes()).decode()))


def test_without_a_text_a_thing_is_taken_away(service: Service) -> None:
    request = a_request(width=removal_scene.SIDE, height=removal_scene.SIDE)
    del request.prompt[:]
    request.engine_id = "remove"
    for kind, png in zip(
        (wire.ARTIFACT_IMAGE, wire.ARTIFACT_MASK), removal_scene.pngs(white_paints=False), strict=True
    ):
        request.prompt.add(artifact=wire.Artifact(type=kind, binary=png))
    with grpc.insecure_channel(service.grpc_host) as channel:
        (result,) = pictures(Channel(channel, None).generate(request, timeout=30))
    removal_scene.assert_gone(pixels(base64.b64encode(result.binary).decode()))


def test_every_sampler_paints(service: Service) -> None:
    drawn = [base64.b64decode(encoded(image)) for image in (picture(), mask())]
    made = {}
    with grpc.insecure_channel(service.grpc_host) as channel:
        for name, sampler in wire.DiffusionSampler.items():
            request = a_request(text("a red circle on a white background"), width=SIDE, height=SIDE, steps=12)
            request.prompt[1].artifact.binary, request.prompt[2].artifact.binary = drawn
            request.image.transform.diffusion = sampler
            (result,) = pictures(Channel(channel, None).generate(request, timeout=30))
            made[name] = result.binary
            result_pixels = pixels(base64.b64encode(result.binary).decode())
            assert np.array_equal(
                result_pixels[np.asarray(mask()) == 255], np.asarray(picture())[np.asarray(mask()) == 255]
            )
    assert len(set(made.values())) == len(made) == 11


def test_the_documented_example_writes_its_picture(sdk: Path, service: Service, tmp_path: Path) -> None:
    readme = (SOURCE_DIR / "README.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "stability_sdk" in block]
    (tmp_path / "deploy").symlink_to(SOURCE_DIR / "deploy")
    here = example.replace("127.0.0.1:50051", service.grpc_host)
    assert here != example
    done = subprocess.run(
        [sys.executable, "-c", here],
        cwd=tmp_path,
        env=environment(sdk),
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = pixels(base64.b64encode((tmp_path / "image-7.png").read_bytes()).decode())
    assert made.shape == (256, 256, 3)
