"""The pictures and addresses of a submission, made safe to store: inline pictures become objects."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from api.addresses import OwnPicture, OwnUnknown, OwnUpload, own_link, upload_link
from api.errors import AddressRefused, InvalidImage, LinkNotReady, LinkUnknown
from storage.image_store import ImageStore, ObjectMissing
from storage.job import InpaintJob, JobStatus
from storage.job_store import JobStore
from storage.outbound import OutboundDoor, OutboundRefused

URL_START = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
DATA_URI = re.compile(r"data:(?P<kind>[^,]{0,200}),", re.IGNORECASE)
BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
URL_SAFE_TO_PLAIN = bytes.maketrans(b"-_", b"+/")
LINE_ENDS = b"\r\n\t\f\v"
BASE64_UNIT = 4
MAX_URL_CHARS = 8192

SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"BM"), "image/bmp"),
    (re.compile(rb"II\*\x00|MM\x00\*"), "image/tiff"),
)


@dataclass(frozen=True)
class Inline:
    """A picture that came inside the request body."""

    data: bytes
    content_type: str


@dataclass(frozen=True)
class Reference:
    """What the worker opens, and the link that stands for it in answers."""

    reference: str
    shown: str


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What it takes to settle a submission's pictures."""

    jobs: JobStore
    images: ImageStore
    door: OutboundDoor
    base_url: str
    own_urls: Sequence[str]
    own_hosts: Sequence[str]
    input_ttl_seconds: float

    def settle(self, job: InpaintJob) -> tuple[InpaintJob, list[str]]:
        """The job with references for its pictures, and the keys of the objects made for it.

        Everything is checked before anything is stored. Raises AddressRefused, InvalidImage, LinkNotReady
        and LinkUnknown, naming the field.
        """
        init = self._read("init_image", job.init_image)
        mask = self._read("mask_image", job.mask_image)
        look = self._read("ip_adapter_image", job.ip_adapter.image) if job.ip_adapter else None
        if job.webhook_url is not None:
            self._check("webhook", job.webhook_url)
        stored: list[str] = []
        settled = [each if isinstance(each, Reference) else self.store(each, stored) for each in (init, mask)]
        wire = {**job.wire, "init_image": settled[0].shown, "mask_image": settled[1].shown}
        job = dataclasses.replace(job, init_image=settled[0].reference, mask_image=settled[1].reference, wire=wire)
        if job.ip_adapter is None or look is None:
            return job, stored
        shown = look if isinstance(look, Reference) else self.store(look, stored)
        return dataclasses.replace(
            job,
            ip_adapter=dataclasses.replace(job.ip_adapter, image=shown.reference),
            wire={**job.wire, "ip_adapter_image": shown.shown},
        ), stored

    def store(self, picture: Inline, stored: list[str]) -> Reference:
        """Put a picture into the image store; its expiry is noted first, so that none is forgotten."""
        upload_id = str(uuid.uuid4())
        key = upload_key(upload_id)
        self._keep(key)
        stored.append(key)
        self.images.put(key, picture.data, picture.content_type)
        return Reference(f"object:{key}", upload_link(upload_id, self.base_url))

    def forget(self, keys: Sequence[str]) -> None:
        """Delete the objects of a submission that came to nothing."""
        if keys:
            self.images.delete(keys)
            for key in keys:
                self.jobs.forget("inputs", key)

    def _read(self, field: str, value: str) -> Reference | Inline:
        if not URL_START.match(value):
            return read_inline(field, value)
        own = own_link(value, self.own_urls, self.own_hosts)
        if own is None:
            self._check(field, value)
            return Reference(value, value)
        return Reference(self._reference_to(field, own), value)

    def _reference_to(self, field: str, own: OwnPicture | OwnUpload | OwnUnknown) -> str:
        match own:
            case OwnPicture(image_id, index):
                job = self.jobs.by_image_id(image_id)
                if job is None or index >= job.num_images or job.status in _WITHOUT_PICTURES:
                    raise LinkUnknown(field=field)
                if job.status is not JobStatus.SUCCEEDED:
                    raise LinkNotReady(field=field)
                return f"result:{image_id}-{index}"
            case OwnUpload(upload_id):
                key = upload_key(upload_id)
                try:
                    self.images.get(key)
                except ObjectMissing as error:
                    raise LinkUnknown(field=field) from error
                self._keep(key)
                return f"object:{key}"
            case OwnUnknown():
                raise LinkUnknown(field=field)

    def _check(self, field: str, url: str) -> None:
        if len(url) > MAX_URL_CHARS:
            raise AddressRefused(field=field)
        try:
            self.door.check(url)
        except OutboundRefused as error:
            raise AddressRefused(field=field) from error

    def _keep(self, key: str) -> None:
        self.jobs.keep_until("inputs", key, self.jobs.now() + self.input_ttl_seconds, longer=True)


_WITHOUT_PICTURES = (JobStatus.FAILED, JobStatus.CANCELLED)


def upload_key(upload_id: str) -> str:
    return f"inputs/{upload_id}"


def content_type_of(data: bytes) -> str | None:
    """By the first bytes; None for what is no picture. Nothing is decoded here."""
    for signature, content_type in SIGNATURES:
        if signature.match(data):
            return content_type
    return None


def read_inline(field: str, value: str) -> Inline:
    """A data URI or bare base64 (URL-safe letters, line ends and missing padding too). Raises InvalidImage."""
    data = _decode_data_uri(value) if DATA_URI.match(value) else _decode_base64(value.encode())
    content_type = content_type_of(data) if data else None
    if data is None or content_type is None:
        raise InvalidImage(field=field)
    return Inline(data, content_type)


def _decode_data_uri(value: str) -> bytes | None:
    header = DATA_URI.match(value)
    if header is None:
        return None
    payload = value[header.end() :]
    data = unquote_to_bytes(payload) if "%" in payload else payload.encode()
    return _decode_base64(data) if ";base64" in header["kind"].casefold() else data


def _decode_base64(text: bytes) -> bytes | None:
    text = text.strip().translate(URL_SAFE_TO_PLAIN, delete=LINE_ENDS)
    # A blank is layout, or the + of a form that was not encoded: whichever gives whole units.
    readings = (text.replace(b" ", b""), text.replace(b" ", b"+"))
    return _decode_strictly(min(readings, key=lambda reading: len(reading) % BASE64_UNIT != 0))


def _decode_strictly(text: bytes) -> bytes | None:
    if not BASE64_TEXT.fullmatch(text):
        return None
    text = text.rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % BASE64_UNIT), validate=True)
    except binascii.Error:
        return None
