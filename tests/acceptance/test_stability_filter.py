"""A picture with FILTER in the hands of Stability's own Python client: it comes, blurred, and is told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.dialects.stability.native import open_pool, open_server
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stability.settings import GrpcSettings
from storage.job import InpaintJob
from tests.acceptance.test_stability_python import RED, drive, sdk
from tests.front_end import FakeWorker, FrontEnd, open_with
from tests.stability_scene import encoded, mask, picture

__all__ = ["open_with", "sdk"]


@pytest.fixture
def front_end(open_with: Callable[..., FrontEnd], tmp_path: Path) -> FrontEnd:
    models_file = tmp_path / "models.toml"
    models_file.write_text('[safety_checker]\nfolder = "checker"\n')
    return open_with(models_file=models_file)


@pytest.fixture
def host(front_end: FrontEnd) -> Iterator[str]:
    settings = GrpcSettings(grpc_port=0)
    with open_pool(settings) as pool:
        server, ports = open_server(front_end.parts, settings, pool)
        server.start()
        try:
            yield f"127.0.0.1:{ports['plaintext']}"
        finally:
            server.stop(None).wait()


def test_the_client_gets_a_filtered_picture_and_its_context_raises(sdk: Path, front_end: FrontEnd, host: str) -> None:
    def found_in_all(job: InpaintJob) -> InpaintJob:
        assert job.safety_checker is not None
        done = front_end.painted(job)
        images = tuple(dataclasses.replace(image, nsfw=True) for image in done.images)
        return dataclasses.replace(done, images=images, nsfw=True)

    asked: dict[str, Any] = {"init": encoded(picture()), "mask": encoded(mask())}
    with FakeWorker(front_end, found_in_all):
        told = drive(sdk, "generate", host, "", **asked, **RED, seed=7)
        raised = drive(sdk, "inpaint", host, "", **asked, prompt=RED["prompt"])
    assert "returned" in told, told
    (made,) = told["returned"]["pictures"]
    assert (made["finish_reason"], told["returned"]["classified"]) == (wire.FILTER, 1)
    assert made["png"]
    assert raised["raised"] == "ClassifierException"
