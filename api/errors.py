"""Why a request was not accepted: the family of refusals. No job exists; each dialect has its own words."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field. `kind` is stable; `facts` are the numbers and names to say it with."""

    field: str
    kind: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class WireError:
    """A refusal in a dialect's words, ready to be sent."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Refused(Exception):
    """The request was refused."""

    code: ClassVar[str]
    status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST

    def __init__(self, *, field: str | None = None, retry_after_seconds: int | None = None, **facts: Any) -> None:
        super().__init__(self.message)
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.facts = facts

    @property
    def message(self) -> str:
        """The class' docstring: safe to be shown."""
        return inspect.cleandoc(type(self).__doc__ or "")

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to the refusal whatever the dialect."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


class MalformedBody(Refused):
    """The request body is neither a JSON object nor form fields."""

    code = "malformed_body"


class InvalidFields(Refused):
    """A field is missing or has a value that cannot be used."""

    code = "invalid_request"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(field=problems[0].field)
        self.problems = tuple(problems)


class UnknownModel(Refused):
    """There is no such model."""

    code = "unknown_model"


class AddressRefused(Refused):
    """The address may not be called by this service: only public http and https addresses may."""

    code = "address_refused"


class InvalidImage(Refused):
    """The value is neither a link nor a base64 encoded picture."""

    code = "invalid_image"


class LinkNotReady(Refused):
    """The link is to a picture of this service that is not finished."""

    code = "link_not_ready"


class LinkUnknown(Refused):
    """The link is to this service, which has no such picture."""

    code = "link_unknown"


class MissingApiKey(Refused):
    """API key required."""

    code = "missing_api_key"
    status = HTTPStatus.UNAUTHORIZED


class InvalidApiKey(Refused):
    """Invalid API key."""

    code = "invalid_api_key"
    status = HTTPStatus.UNAUTHORIZED


class JobNotFound(Refused):
    """There is no such job, or it belongs to another key."""

    code = "job_not_found"
    status = HTTPStatus.NOT_FOUND


class PathNotFound(Refused):
    """There is nothing at this address."""

    code = "not_found"
    status = HTTPStatus.NOT_FOUND


class MethodNotAllowed(Refused):
    """This address does not take this method."""

    code = "method_not_allowed"
    status = HTTPStatus.METHOD_NOT_ALLOWED


class AlreadyOver(Refused):
    """The job is over already."""

    code = "already_over"
    status = HTTPStatus.CONFLICT


class BodyTooLarge(Refused):
    """The request body is larger than this service accepts."""

    code = "body_too_large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class IdempotencyKeyReused(Refused):
    """This Idempotency-Key was used before with another request body."""

    code = "idempotency_conflict"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class QueueTooLong(Refused):
    """This API key has as many jobs waiting as it may have."""

    code = "queue_full"
    status = HTTPStatus.TOO_MANY_REQUESTS


class TooManyRequests(Refused):
    """This API key has sent more requests than it may send in a minute."""

    code = "too_many_requests"
    status = HTTPStatus.TOO_MANY_REQUESTS


class OutOfService(Refused):
    """A part that this service needs is out of service for the moment. Nothing was accepted."""

    code = "storage_unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class Unexpected(Refused):
    """Something unexpected went wrong; it was logged."""

    code = "internal_error"
    status = HTTPStatus.INTERNAL_SERVER_ERROR


def all_refusals() -> Iterator[type[Refused]]:
    """Every refusal there is: what each dialect must have words for."""
    yield from Refused.__subclasses__()
