"""Tells a client that its job is over: the dialect's body, signed, posted, tried again while it fails."""

from __future__ import annotations

import importlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, cast
from urllib.parse import urljoin, urlsplit

import structlog
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_settings import NoDecode

from api.delivery_log import DEFAULT_TRIES_KEPT, DeliveryLog, Outcome, Standing, Try, WebhookState
from api.keys import KeyStore
from api.webhook_message import WebhookMessage, encode_body, sign
from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_store import JobStore
from storage.outbound import Answer, OutboundDoor, OutboundFailed, OutboundReason, OutboundRefused
from storage.settings import DAY_SECONDS, HOUR_SECONDS, EnvironmentSettings

MINUTE_SECONDS = 60
# How long each try may take beyond its time-out, for Redis and for the machine to be slow.
MARGIN_SECONDS = 5.0
# A webhook whose receiver has enough of our threads already looks again after a while within these.
SHORTEST_TURN_SECONDS, LONGEST_TURN_SECONDS = 1.0, 5.0

# The headers for a job's webhook, made of its very bytes.
Signature = Callable[[InpaintJob, bytes], Mapping[str, str]]

logger = structlog.get_logger(__name__)


class WebhookSettings(EnvironmentSettings):
    webhook_timeout_seconds: PositiveFloat = Field(
        default=15.0, description="A receiver that has not answered a webhook after this has failed."
    )
    webhook_retry_seconds: Annotated[tuple[NonNegativeFloat, ...], NoDecode] = Field(
        default=(
            5,
            5 * MINUTE_SECONDS,
            30 * MINUTE_SECONDS,
            *(hours * HOUR_SECONDS for hours in (2, 5, 10, 14, 20, 24)),
        ),
        description="Seconds from each failed try of a webhook to the next, comma separated; then it is given "
        "up. The default spans about three days.",
    )
    webhook_retry_jitter: float = Field(
        default=0.1, ge=0, le=1, description="Each of those waits is longer by up to this share of itself."
    )
    webhook_longest_retry_after_seconds: PositiveFloat = Field(
        default=DAY_SECONDS, description="A longer `Retry-After` of a receiver counts as this."
    )
    webhook_max_body_bytes: PositiveInt = Field(
        default=20_000, description="Long texts in a webhook's `meta` are cut to stay below this."
    )
    webhook_tries_kept: PositiveInt = Field(
        default=DEFAULT_TRIES_KEPT, description="How many tries of a webhook its delivery log lists."
    )
    webhook_hold_seconds: PositiveFloat = Field(
        default=60.0,
        description="A webhook whose dispatcher died comes again after this; more than the time-out plus 5.",
    )
    webhook_threads: PositiveInt = Field(default=32, description="Webhooks that one dispatcher posts at a time.")
    webhook_threads_per_host: PositiveInt = Field(
        default=8, description="Those of them that may go to one host, so that a slow one leaves some free."
    )

    @field_validator("webhook_retry_seconds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _a_try_ends_before_it_is_taken_for_lost(self) -> WebhookSettings:
        if self.webhook_hold_seconds <= self.webhook_alone_seconds:
            raise ValueError(
                f"WEBHOOK_HOLD_SECONDS must be more than WEBHOOK_TIMEOUT_SECONDS plus {MARGIN_SECONDS:.0f}"
            )
        return self

    @property
    def webhook_alone_seconds(self) -> float:
        return self.webhook_timeout_seconds + MARGIN_SECONDS


class DeliveryFailed(Exception):
    """The receiver did not take the webhook. `permanent`: it never will, do not try again."""

    def __init__(
        self,
        outcome: Outcome,
        *,
        permanent: bool = False,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        redirect_host: str | None = None,
    ) -> None:
        super().__init__(self.__doc__)
        self.outcome = outcome
        self.permanent = permanent
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.redirect_host = redirect_host


class Courier:
    """Delivers webhooks; one per process, used by many threads at once."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        keys: KeyStore,
        log: DeliveryLog,
        door: OutboundDoor,
        settings: WebhookSettings,
        delivery_ttl_seconds: float,
        signatures: Mapping[str, Signature] | None = None,
        stretch: Callable[[], float] = random.random,
    ) -> None:
        """`signatures`: what a dialect signs with beside our own signature, by its name.

        `stretch` answers numbers from 0 to 1: how much of the jitter a wait gets.
        """
        self._jobs = jobs
        self._keys = keys
        self._log = log
        self._door = door
        self._settings = settings
        self._delivery_ttl_seconds = delivery_ttl_seconds
        self._signatures = signatures or {}
        self._stretch = stretch
        self._seats = HostSeats(settings.webhook_threads_per_host)

    def deliver(self, job_id: str) -> str:
        """Make the try that is due, if one is. Answers in a few words what came of it.

        At least once: whoever dies before the outcome is stored leaves the webhook due again after the
        hold time, under the same id. A repeated message finds nothing due. Raises StorageUnavailable.
        """
        with self._log.alone(job_id, at_most_seconds=self._settings.webhook_alone_seconds) as is_alone:
            if not is_alone:
                return f"{job_id}: another delivers it"
            job = self._jobs.get(job_id)
            standing = self._log.standing(job_id)
            if job is None or job.webhook_url is None or standing.state.is_final:
                self._jobs.clear_webhook(job_id)
                return f"{job_id}: nothing to deliver"
            now = self._jobs.now()
            if not job.status.is_final or standing.next_at > now:
                return f"{job_id}: not due"
            with self._seats.taken(_host(job.webhook_url)) as is_seated:
                if not is_seated:
                    span = LONGEST_TURN_SECONDS - SHORTEST_TURN_SECONDS
                    self._jobs.set_webhook_due(job_id, now + SHORTEST_TURN_SECONDS + span * self._stretch())
                    return f"{job_id}: its host is busy"
                self._jobs.set_webhook_due(job_id, now + self._settings.webhook_hold_seconds)
                return self._try(job, standing, now)

    def _try(self, job: InpaintJob, standing: Standing, now: float) -> str:
        started = time.monotonic()
        failure = None
        status = None
        try:
            status = self._post(job)
        except DeliveryFailed as error:
            failure, status = error, error.status
        except StorageUnavailable:
            raise
        except Exception:
            logger.exception("webhook could not be made", **job.log_context())
            failure = DeliveryFailed(Outcome.INTERNAL_ERROR)
        duration_seconds = time.monotonic() - started
        after = self._standing_after(standing, failure, now + duration_seconds)
        attempt = Try(
            number=after.tries,
            at=now,
            duration_seconds=round(duration_seconds, 3),
            outcome=failure.outcome if failure else Outcome.DELIVERED,
            status=status,
            redirect_host=failure.redirect_host if failure else None,
            next_at=None if after.state.is_final else after.next_at,
        )
        self._settle(job, attempt, after)
        return f"{job.job_id}: {attempt.outcome}{f' {status}' if status else ''}"

    def _settle(self, job: InpaintJob, attempt: Try, after: Standing) -> None:
        self._log.record(job.job_id, attempt, after)
        self._jobs.keep_until("deliveries", job.job_id, self._jobs.now() + self._delivery_ttl_seconds)
        if after.state.is_final:
            self._jobs.clear_webhook(job.job_id)
        else:
            self._jobs.set_webhook_due(job.job_id, after.next_at)
        logger.info(
            "webhook tried",
            **job.log_context(),
            webhook_status=after.state.value,
            webhook_try=attempt.number,
            webhook_host=_host(job.webhook_url),
            outcome=attempt.outcome.value,
            http_status=attempt.status,
            redirect_host=attempt.redirect_host,
            duration_seconds=attempt.duration_seconds,
            next_at=attempt.next_at,
        )

    def _standing_after(self, before: Standing, failure: DeliveryFailed | None, now: float) -> Standing:
        tries, round_tries = before.tries + 1, before.round_tries + 1
        if failure is None:
            return Standing(state=WebhookState.DELIVERED, tries=tries, round_tries=round_tries)
        if failure.permanent or round_tries > len(self._settings.webhook_retry_seconds):
            return Standing(state=WebhookState.FAILED, tries=tries, round_tries=round_tries)
        next_at = now + self._wait_seconds(round_tries, failure)
        return Standing(state=WebhookState.RETRYING, tries=tries, round_tries=round_tries, next_at=next_at)

    def _wait_seconds(self, round_tries: int, failure: DeliveryFailed) -> float:
        """From this failed try to the next: the schedule's wait, or the receiver's where that is longer.

        Never sooner than scheduled: a receiver in trouble that says "5 seconds" each time would otherwise
        use up the schedule of three days in a minute.
        """
        scheduled = self._settings.webhook_retry_seconds[round_tries - 1]
        asked_for = min(failure.retry_after_seconds or 0, self._settings.webhook_longest_retry_after_seconds)
        return max(scheduled, asked_for) * (1 + self._settings.webhook_retry_jitter * self._stretch())

    def _post(self, job: InpaintJob) -> int:
        api_key = self._keys.get(job.key_id)
        if job.webhook_url is None or api_key is None:
            raise LookupError("no webhook, or no key to sign it with")
        message = render_webhook(job)
        body = encode_body(message.body, max_bytes=self._settings.webhook_max_body_bytes)
        headers = {**message.headers, **sign(job.job_id, body, secret=api_key.webhook_secret)}
        if job.dialect in self._signatures:
            headers |= self._signatures[job.dialect](job, body)
        try:
            answer = self._door.post(
                job.webhook_url,
                body=body,
                headers=headers,
                timeout_seconds=self._settings.webhook_timeout_seconds,
            )
        except OutboundRefused as error:
            raise DeliveryFailed(Outcome.REFUSED, permanent=True) from error
        except OutboundFailed as error:
            raise DeliveryFailed(_outcome_of(error.reason), status=error.status) from error
        judge(answer, url=job.webhook_url)
        return answer.status


class HostSeats:
    """How many deliveries of this process are under way to each host."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, host: str) -> Iterator[bool]:
        """Holds a seat while inside, if one was free; says whether it was."""
        with self._lock:
            is_free = self._taken[host] < self._per_host
            self._taken[host] += is_free
        try:
            yield is_free
        finally:
            with self._lock:
                self._taken[host] -= is_free
                if not self._taken[host]:
                    del self._taken[host]


def render_webhook(job: InpaintJob) -> WebhookMessage:
    """In the words of the dialect in which the job was submitted."""
    dialect = importlib.import_module(f"api.dialects.{job.dialect}")
    return cast("WebhookMessage", dialect.render_webhook(job))


def judge(answer: Answer, *, url: str) -> None:
    """Return if the receiver took the webhook, else raise DeliveryFailed. Only 2xx is success."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        host = _host(url, headers["location"]) if "location" in headers else ""
        raise DeliveryFailed(Outcome.REDIRECT, status=status, redirect_host=host or None)
    retry_after_seconds = None
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        retry_after_seconds = read_retry_after(headers.get("retry-after", ""), now=datetime.now(tz=UTC))
    raise DeliveryFailed(
        Outcome.STATUS,
        status=status,
        permanent=status == HTTPStatus.GONE,
        retry_after_seconds=retry_after_seconds,
    )


def read_retry_after(value: str, *, now: datetime) -> float | None:
    """Seconds from now, of a `Retry-After` in seconds or as an HTTP date; None where it is neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def _outcome_of(reason: OutboundReason) -> Outcome:
    try:
        return Outcome(reason.value)
    except ValueError:
        return Outcome.UNREACHABLE


def _host(url: str | None, reference: str = "") -> str:
    """The host of an address, or of a reference found there; "" where it has none."""
    try:
        return urlsplit(urljoin(url or "", reference)).hostname or ""
    except ValueError:
        return ""
