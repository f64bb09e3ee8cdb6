"""The links we give out: results as PNG or base64 text, and pictures that clients have sent."""

from __future__ import annotations

import base64
import re
from http import HTTPStatus
from typing import Literal

from flask import Blueprint, Response, redirect, request
from flask.typing import ResponseReturnValue

from api.addresses import UUID
from api.errors import PathNotFound
from api.inputs import content_type_of, upload_key
from api.parts import parts
from storage.image_store import ObjectMissing
from storage.job import InpaintJob, JobStatus

PICTURE_NAME = re.compile(rf"(?P<image_id>{UUID})-(?P<index>\d{{1,3}})\.(?P<kind>png|base64)", re.ASCII)
UPLOAD_ID = re.compile(UUID, re.ASCII)
NOT_YET = "no-store"

blueprint = Blueprint("images", __name__)


@blueprint.get("/images/<name>")
def picture(name: str) -> ResponseReturnValue:
    return _picture(name, temporary=False)


@blueprint.get("/images/temp/<name>")
def temporary_picture(name: str) -> ResponseReturnValue:
    return _picture(name, temporary=True)


@blueprint.get("/uploads/<upload_id>")
def upload(upload_id: str) -> ResponseReturnValue:
    if not UPLOAD_ID.fullmatch(upload_id):
        raise PathNotFound
    data = _bytes(upload_key(upload_id))
    lifetime = parts().storage_settings.input_ttl
    content_type = content_type_of(data) or "application/octet-stream"
    return _immutable(data, content_type, tag=upload_id, seconds=lifetime)


@blueprint.after_request
def open_to_browsers(response: Response) -> Response:
    """Whoever has the link may have the picture, pages of other sites too; a 404 may change at any moment."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_MODIFIED):
        response.headers["Cache-Control"] = NOT_YET
    return response


def _picture(name: str, *, temporary: bool) -> ResponseReturnValue:
    parsed = PICTURE_NAME.fullmatch(name)
    job = parts().jobs.by_image_id(parsed["image_id"]) if parsed else None
    if parsed is None or job is None or job.temporary is not temporary:
        raise PathNotFound
    index = int(parsed["index"])
    if job.status is not JobStatus.SUCCEEDED or index >= len(job.images):
        raise PathNotFound
    return _finished(job, index, "png" if parsed["kind"] == "png" else "base64")


def _finished(job: InpaintJob, index: int, kind: Literal["png", "base64"]) -> ResponseReturnValue:
    all_parts = parts()
    key = job.images[index].key
    tag = f"{job.image_id}-{index}.{kind}"
    left_seconds = _left_seconds(job)
    if left_seconds <= 0:
        raise PathNotFound
    if kind == "base64":
        return _immutable(base64.b64encode(_bytes(key)), "text/plain; charset=utf-8", tag=tag, seconds=left_seconds)
    link_seconds = all_parts.storage_settings.s3_link_seconds
    link = all_parts.images.signed_link(key, seconds=link_seconds, file_name=tag)
    if link is not None:
        return redirect(link)
    return _immutable(_bytes(key), "image/png", tag=tag, seconds=left_seconds)


def _left_seconds(job: InpaintJob) -> float:
    """Until the picture's time is over."""
    settings = parts().storage_settings
    lifetime = settings.temporary_result_ttl if job.temporary else settings.result_ttl
    return (job.finished_at or 0) + lifetime - parts().clock()


def _bytes(key: str) -> bytes:
    try:
        return parts().images.get(key)
    except ObjectMissing as error:
        raise PathNotFound from error


def _immutable(data: bytes, content_type: str, *, tag: str, seconds: float) -> Response:
    """Bytes that never change under their link: cacheable for as long as they are kept, in parts too."""
    response = Response(data, content_type=content_type)
    response.headers["Cache-Control"] = f"public, max-age={max(0, int(seconds))}, immutable"
    response.headers["Content-Disposition"] = "inline"
    response.set_etag(tag)
    response.make_conditional(request, accept_ranges=True, complete_length=len(data))
    return response
