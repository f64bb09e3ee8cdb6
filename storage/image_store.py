"""Where pictures lie: an S3-compatible service or a folder, behind one interface, for API and worker alike."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.errors import StorageUnavailable
from storage.settings import DAY_SECONDS, HOUR_SECONDS, StorageSettings

# No segment starts with a dot, so "..", hidden files and our own unfinished ones cannot be named.
_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY: Final = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_MAX_KEY_LENGTH: Final = 255

_UNFINISHED: Final = ".unfinished"
_PARENT_RACES: Final = 100

# SigV4 signs for seven days at most.
_MAX_LINK_SECONDS: Final = 7 * DAY_SECONDS
_CONNECTIONS: Final = 64
_MISSING_KEY_CODES: Final = frozenset({"NoSuchKey", "404", "NotFound"})


class ObjectMissing(Exception):
    """No object has this key."""


class ImageStore(Protocol):
    """Bytes by key. Keys are ours: ASCII letters, digits, `.`, `_` and `-` in segments joined by `/`.

    Every method raises `ValueError` for a key of another shape and `StorageUnavailable` when the store does not
    do what it should; all may be called from any thread.
    """

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store `data` whole: a reader sees the old bytes or the new ones."""

    def get(self, key: str) -> bytes:
        """The object's bytes; `ObjectMissing` where there is none."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete these objects; one that is not there is no error."""

    def signed_link(self, key: str, *, seconds: int, file_name: str | None = None) -> str | None:
        """A link to the object that works for so many `seconds`, seven days at most, under which browsers save it
        as `file_name`; None where clients cannot reach the store."""

    def check(self) -> None:
        """Raise `StorageUnavailable`, saying what is missing, unless the store answers within about 3 s."""


def open_image_store(settings: StorageSettings) -> ImageStore:
    """The S3 twin where `S3_BUCKET` is set, else the folder twin."""
    if settings.s3_bucket is None:
        return FolderImageStore(settings.image_dir)
    return S3ImageStore(
        bucket=settings.s3_bucket,
        region=settings.s3_region,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
    )


def _checked(key: str) -> str:
    if len(key) > _MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


class FolderImageStore:
    """Objects as files below one folder. Any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._unfinished = self._folder / _UNFINISHED

    def put(self, key: str, data: bytes, content_type: str) -> None:
        path = self._folder / _checked(key)
        unfinished = self._unfinished / uuid4().hex
        with _folder_errors():
            self._unfinished.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_bytes(data)
                _move(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        path = self._folder / _checked(key)
        with _folder_errors():
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise ObjectMissing(key) from error

    def delete(self, keys: Iterable[str]) -> None:
        with _folder_errors():
            for key in keys:
                path = self._folder / _checked(key)
                try:
                    path.unlink(missing_ok=True)
                except (NotADirectoryError, IsADirectoryError):
                    continue
                self._remove_empty_parents(path)

    def signed_link(self, key: str, *, seconds: int, file_name: str | None = None) -> str | None:
        _checked(key)
        return None

    def check(self) -> None:
        with _folder_errors():
            self._unfinished.mkdir(parents=True, exist_ok=True)
            probe = self._unfinished / uuid4().hex
            probe.write_bytes(b"")
            probe.unlink()
            self._sweep()

    def _remove_empty_parents(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self._folder:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty: others live there
                return

    def _sweep(self) -> None:
        """What a killed process left behind: nobody writes one picture for an hour."""
        oldest = time.time() - HOUR_SECONDS
        for left in self._unfinished.iterdir():
            try:
                if left.stat().st_mtime < oldest:
                    left.unlink()
            except FileNotFoundError:
                continue


def _move(source: Path, path: Path) -> None:
    """Rename into place. A delete elsewhere may empty and remove a parent at any moment: `mkdir` then finds it
    there and yet not there, or `replace` finds it gone."""
    for _ in range(_PARENT_RACES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            source.replace(path)
        except (FileNotFoundError, FileExistsError):
            continue
        return
    raise StorageUnavailable("the image folder: a folder in it cannot be made")


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"the image folder: {error.strerror or type(error).__name__}") from error


class S3ImageStore:
    """Objects in one bucket of an S3-compatible service; the bucket must exist.

    Credentials are what boto3 finds: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a shared file, a role.
    `public_endpoint` is where clients reach the same service: a signature covers the host it is sent to.
    """

    def __init__(
        self, *, bucket: str, region: str, endpoint: str | None = None, public_endpoint: str | None = None
    ) -> None:
        self._bucket = bucket
        session = boto3.session.Session(region_name=region)
        with self._errors():
            self._client = _client(session, endpoint, connect_seconds=3, read_seconds=20, attempts=3)
            self._probe = _client(session, endpoint, connect_seconds=1, read_seconds=2, attempts=1)
            self._signer = (
                _client(session, public_endpoint, connect_seconds=1, read_seconds=1, attempts=1)
                if public_endpoint
                else None
            )

    def put(self, key: str, data: bytes, content_type: str) -> None:
        _checked(key)
        with self._errors():
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)

    def get(self, key: str) -> bytes:
        _checked(key)
        with self._errors():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _code(error) in _MISSING_KEY_CODES:
                    raise ObjectMissing(key) from error
                raise
            with answer["Body"] as body:
                data: bytes = body.read()
                return data

    def delete(self, keys: Iterable[str]) -> None:
        # One by one: a job has four pictures at most, and services disagree about the checksum of a bulk delete.
        with self._errors():
            for key in keys:
                self._delete_one(_checked(key))

    def signed_link(self, key: str, *, seconds: int, file_name: str | None = None) -> str | None:
        _checked(key)
        if self._signer is None:
            return None
        params = {"Bucket": self._bucket, "Key": key}
        if file_name is not None:
            params["ResponseContentDisposition"] = f'inline; filename="{_checked(file_name)}"'
        with self._errors():
            link: str = self._signer.generate_presigned_url(
                "get_object", Params=params, ExpiresIn=min(seconds, _MAX_LINK_SECONDS)
            )
            return link

    def check(self) -> None:
        with self._errors():
            self._probe.head_bucket(Bucket=self._bucket)

    def _delete_one(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) not in _MISSING_KEY_CODES:
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """boto3's exceptions end here; ours name the bucket and what is wrong, never a signed address."""
        try:
            yield
        except ClientError as error:
            raise StorageUnavailable(f"the bucket {self._bucket}: {_explained(_code(error))}") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"the bucket {self._bucket}: {type(error).__name__}") from error


def _client(
    session: Any,  # boto3 carries no types
    endpoint: str | None,
    *,
    connect_seconds: float,
    read_seconds: float,
    attempts: int,
) -> Any:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        # Other services than AWS's do not all know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=_CONNECTIONS,
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _explained(code: str) -> str:
    known = {
        "404": "it does not exist",
        "NoSuchBucket": "it does not exist",
        "403": "these credentials are refused",
        "AccessDenied": "these credentials are refused",
        "InvalidAccessKeyId": "these credentials are refused",
        "SignatureDoesNotMatch": "these credentials are refused",
    }
    return known.get(code, code or "an answer without a code")
