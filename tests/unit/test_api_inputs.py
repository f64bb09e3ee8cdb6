"""Inline pictures are recognised however they are encoded; links of ours are told from others'."""

from __future__ import annotations

import base64
import uuid
from urllib.parse import quote

import pytest

from api.addresses import OwnPicture, OwnUnknown, OwnUpload, own_link, picture_links
from api.errors import InvalidImage
from api.inputs import content_type_of, read_inline
from tests.front_end import png
from tests.jobs import a_job

DATA = png(5, 3) + b"\xfb\xff\xfe"
TEXT = base64.b64encode(DATA).decode()
ID = "0b0e8b1e-9f0c-4a57-8f4e-0d6d6f3c2a11"


def wrapped(text: str, end: str) -> str:
    return end.join(text[start : start + 76] for start in range(0, len(text), 76))


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        f"  {TEXT}\n",
        wrapped(TEXT, "\r\n"),
        wrapped(TEXT, " "),
        TEXT.replace("+", " "),
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/PNG;charset=x;BASE64,{wrapped(TEXT, chr(10))}",
        f"data:;base64,{quote(TEXT)}",
        f"data:image/png,{quote(DATA)}",
    ],
    ids=[
        "bare",
        "blanks",
        "lines",
        "blank-wrapped",
        "form-plus",
        "no-padding",
        "url-safe",
        "uri",
        "odd-uri",
        "quoted",
        "raw",
    ],
)
def test_an_inline_picture_is_read_however_it_is_encoded(value: str) -> None:
    inline = read_inline("init_image", value)
    assert inline.data == DATA
    assert inline.content_type == "image/png"


@pytest.mark.parametrize(
    "value",
    [
        "cat",
        "example.com/cat.png",
        "/etc/passwd",
        base64.b64encode(b"<html>no picture</html>").decode(),
        f"data:text/html;base64,{base64.b64encode(b'<html>').decode()}",
        "data:image/png;base64,",
        f"data:image/png;base64,{TEXT[:40]}*{TEXT[40:]}",
        "data:image/png",
        "é" * 40,
        "",
    ],
)
def test_what_is_no_picture_is_refused_naming_the_field(value: str) -> None:
    with pytest.raises(InvalidImage) as refused:
        read_inline("mask_image", value)
    assert refused.value.field == "mask_image"


@pytest.mark.parametrize(
    ("start", "content_type"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8", "image/webp"),
        (b"BM1234", "image/bmp"),
        (b"II*\x00", "image/tiff"),
        (b"<svg xmlns", None),
        (b"%PDF-1.7", None),
    ],
)
def test_a_picture_is_known_by_its_first_bytes(start: bytes, content_type: str | None) -> None:
    assert content_type_of(start) == content_type


OURS = ("https://pictures.example/inpaint", "http://10.0.0.5:8080/")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (f"https://pictures.example/inpaint/images/{ID}-2.png", OwnPicture(ID, 2)),
        (f"https://PICTURES.example:443/images/temp/{ID}-0.base64", OwnPicture(ID, 0)),
        (f"http://10.0.0.5:8080/images/{ID}-0.png?x=1#y", OwnPicture(ID, 0)),
        (f"http://10.0.0.5:8080/uploads/{ID}", OwnUpload(ID)),
        (f"http://old.example:81/uploads/{ID}", OwnUpload(ID)),
        (f"http://cdn.example:9000/uploads/{ID}", OwnUpload(ID)),
        ("https://pictures.example/inpaint/health", OwnUnknown()),
        (f"https://pictures.example/images/{ID}-0.png/../../etc", OwnUnknown()),
        (f"https://pictures.example/images/{ID}-0.png%0a", OwnUnknown()),
        (f"http://10.0.0.5:8081/images/{ID}-0.png", None),
        (f"http://cdn.example:9001/uploads/{ID}", None),
        (f"https://pictures.example.evil.example/images/{ID}-0.png", None),
        (f"https://pictures.example@evil.example/images/{ID}-0.png", None),
        ("http://[::1/images", None),
        ("http://host:port/images", None),
        ("ftp://pictures.example/x", None),
    ],
)
def test_a_link_of_ours_is_known_under_each_of_our_addresses(url: str, place: object) -> None:
    assert own_link(url, OURS, ("old.example", "cdn.example:9000")) == place


def test_the_links_we_give_out_are_links_of_ours() -> None:
    for temporary in (False, True):
        job = a_job(image_id=str(uuid.uuid4()), num_images=2, temporary=temporary)
        for base64_text in (False, True):
            links = picture_links(job, OURS[0], base64_text=base64_text)
            places = [own_link(link, OURS, ()) for link in links]
            assert places == [OwnPicture(job.image_id, 0), OwnPicture(job.image_id, 1)]
