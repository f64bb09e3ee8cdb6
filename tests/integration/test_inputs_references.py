"""References are opened on real servers; what goes wrong there is the job's failure, by name of the field."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from storage.job import MaskPaints, ResultImage
from storage.outbound import OutboundDoor
from tests.jobs import a_job
from tests.workshops import Scene, a_mask, a_picture, png_of
from worker.errors import InputRefused, InputTooLarge, InputUnreachable, JobFailed, NotAnImage, TimedOut
from worker.inputs import Inputs, Sources, open_inputs, read_reference
from worker.settings import WorkerSettings


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def sources_of(scene: Scene, *, open_loopback: bool = True, **options: float) -> Sources:
    allowed = (ip_network("127.0.0.0/8"),) if open_loopback else ()
    settings = WorkerSettings(**({"fetch_timeout_seconds": 1.0} | options))  # type: ignore[arg-type]  # numbers all
    door = OutboundDoor(allowed_private_networks=allowed)
    return Sources(images=scene.images, jobs=scene.jobs, door=door, settings=settings)


def fetch(scene: Scene, reference: str, **options: float) -> bytes:
    return read_reference(reference, "mask_image", sources_of(scene, **options))


@contextmanager
def failing(kind: type[JobFailed], words: str) -> Iterator[None]:
    with pytest.raises(kind) as failure:
        yield
    assert failure.value.field == "mask_image"
    assert failure.value.message.startswith("mask_image") or "mask_image" in failure.value.message
    assert words in failure.value.message


def test_pictures_come_from_urls_at_the_size_asked_for(scene: Scene, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/init.png").respond_with_data(png_of(a_picture(64)), content_type="image/png")
    httpserver.expect_request("/mask.png").respond_with_data(png_of(a_mask(32)), content_type="image/png")
    job = a_job(
        init_image=httpserver.url_for("/init.png"), mask_image=httpserver.url_for("/mask.png"), width=100, height=50
    )
    inputs = open_inputs(job, sources_of(scene))
    assert isinstance(inputs, Inputs)
    assert inputs.picture.shape == (50, 100, 3)
    assert inputs.mask.shape == (50, 100)
    assert (inputs.width, inputs.height) == (100, 50)
    assert (inputs.original_width, inputs.original_height) == (64, 64)
    assert (inputs.mask[13:25, 26:50] == 255).all()


def test_without_a_size_the_picture_s_own_upright_size_is_taken(scene: Scene) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60)).save(buffer, "JPEG", exif=exif)
    scene.images.put("inputs/init", buffer.getvalue(), "image/jpeg")
    scene.images.put("inputs/mask", png_of(a_mask(32)), "image/png")
    inputs = open_inputs(a_job(width=None, height=None), sources_of(scene))
    assert (inputs.width, inputs.height) == (60, 80) == (inputs.original_width, inputs.original_height)


def test_a_mask_is_brought_to_its_normal_form(scene: Scene) -> None:
    scene.images.put("inputs/init", png_of(a_picture(32)), "image/png")
    scene.images.put("inputs/mask", png_of(255 - a_mask(32)), "image/png")
    inputs = open_inputs(a_job(width=32, height=32, mask_paints=MaskPaints.BLACK), sources_of(scene))
    assert np.array_equal(inputs.mask, a_mask(32))


def test_a_result_of_another_job_is_read_from_the_store(scene: Scene) -> None:
    job = a_job()
    scene.jobs.submit(job)
    claimed = scene.jobs.claim_next(worker="test")
    assert claimed is not None
    images = tuple(
        ResultImage(key=f"results/{job.job_id}/1/{k}.png", seed=k, width=1, height=1, size_bytes=1) for k in (0, 1)
    )
    for image in images:
        scene.images.put(image.key, image.key.encode(), "image/png")
    reference = f"result:{job.image_id}-1"
    with failing(InputUnreachable, "not there"):
        fetch(scene, reference)
    scene.jobs.finish(claimed.succeeded(images, at=2.0))
    assert fetch(scene, reference) == images[1].key.encode()
    for missing in (f"result:{job.image_id}-2", f"result:{job.image_id}--1", "result:unknown-0", "result:", "result:-"):
        with failing(InputUnreachable, "not there"):
            fetch(scene, missing)
    scene.images.delete([images[1].key])
    with failing(InputUnreachable, "no longer stored"):
        fetch(scene, reference)


@pytest.mark.parametrize("key", ["inputs/gone", "../../etc/passwd", "", "/etc/passwd"])
def test_an_object_that_is_not_there_is_named(scene: Scene, key: str) -> None:
    with failing(InputUnreachable, "no longer stored"):
        fetch(scene, f"object:{key}")


def test_an_object_over_the_limit_is_too_large(scene: Scene) -> None:
    scene.images.put("inputs/big", b"x" * 101, "image/png")
    with failing(InputTooLarge, "100 bytes"):
        fetch(scene, "object:inputs/big", max_input_bytes=100)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a.png", "/etc/passwd", "", "http://user:secret@127.0.0.1/", "gopher:x"],
)
def test_an_address_that_is_no_web_address_is_refused(scene: Scene, url: str) -> None:
    with failing(InputRefused, "cannot be fetched"):
        fetch(scene, url)


def test_an_address_that_is_not_public_is_refused_without_being_called(scene: Scene, httpserver: HTTPServer) -> None:
    with pytest.raises(InputRefused) as refusal:
        read_reference(httpserver.url_for("/x"), "init_image", sources_of(scene, open_loopback=False))
    assert (refusal.value.code, refusal.value.field) == ("input_refused", "init_image")
    assert "not public" in refusal.value.message
    assert not httpserver.log


def test_a_bad_status_is_named(scene: Scene, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/x").respond_with_data("gone", status=404)
    with failing(InputUnreachable, "404"):
        fetch(scene, httpserver.url_for("/x"))


def test_redirects_without_end_are_named(scene: Scene, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/x").respond_with_data("", status=302, headers={"Location": "/x"})
    with failing(InputUnreachable, "redirects"):
        fetch(scene, httpserver.url_for("/x"))


def test_a_host_that_does_not_resolve_is_named(scene: Scene) -> None:
    with failing(InputUnreachable, "resolve"):
        fetch(scene, "http://no-such-host.invalid/a.png", fetch_timeout_seconds=20)


def test_a_port_on_which_nobody_listens_is_named(scene: Scene) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with failing(InputUnreachable, "reached"):
            fetch(scene, url)


def streaming(chunk: bytes, pause_seconds: float, sent: list[int], seconds: float) -> Callable[[Request], Response]:
    def body() -> Iterator[bytes]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sent.append(len(chunk))
            yield chunk
            time.sleep(pause_seconds)

    return lambda _: Response(body(), content_type="image/png")


def test_a_body_without_end_is_cut_at_the_limit(scene: Scene, httpserver: HTTPServer) -> None:
    sent: list[int] = []
    httpserver.expect_request("/x").respond_with_handler(streaming(b"x" * 65536, 0, sent, seconds=3))
    with failing(InputTooLarge, "1000000 bytes"):
        fetch(scene, httpserver.url_for("/x"), max_input_bytes=1_000_000)
    assert sum(sent) < 20_000_000


def test_a_server_that_drips_is_left_when_the_time_is_over(scene: Scene, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/x").respond_with_handler(streaming(b"x", 0.1, [], seconds=2))
    start = time.monotonic()
    with failing(InputUnreachable, "in time"):
        fetch(scene, httpserver.url_for("/x"), fetch_timeout_seconds=0.5)
    assert time.monotonic() - start < 1.5


def test_the_job_s_deadline_bounds_the_fetch(scene: Scene, httpserver: HTTPServer) -> None:
    answered = threading.Event()
    httpserver.expect_request("/x").respond_with_handler(lambda _: Response(str(answered.wait(2))))
    sources = sources_of(scene, fetch_timeout_seconds=30)
    start = time.monotonic()
    with pytest.raises(InputUnreachable):
        read_reference(httpserver.url_for("/x"), "init_image", sources, deadline=time.monotonic() + 0.3)
    assert time.monotonic() - start < 1.5
    answered.set()
    with pytest.raises(TimedOut):
        read_reference(httpserver.url_for("/x"), "init_image", sources, deadline=time.monotonic() - 1)


def test_a_web_page_is_not_an_image(scene: Scene, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/x").respond_with_data("<html>", content_type="text/html")
    scene.images.put("inputs/init", png_of(a_picture(32)), "image/png")
    with failing(NotAnImage, "not a PNG, JPEG or WebP"):
        open_inputs(a_job(mask_image=httpserver.url_for("/x")), sources_of(scene))
