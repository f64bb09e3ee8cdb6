"""What counts as delivered, what is tried again, and when. No server needed."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from api.delivery_log import Outcome
from api.webhook_message import encode_body, sign
from api.webhooks import DeliveryFailed, HostSeats, WebhookSettings, judge, read_retry_after
from storage.outbound import Answer

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL = "https://client.example/hook?token=secret"


def refusal(status: int, **headers: str) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as raised:
        judge(Answer(status=status, headers=headers), url=URL)
    return raised.value


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_success(status: int) -> None:
    judge(Answer(status=status, headers={}), url=URL)


@pytest.mark.parametrize("status", [100, 301, 304, 400, 404, 408, 429, 500, 503])
def test_everything_else_is_a_failure_to_be_tried_again(status: int) -> None:
    failure = refusal(status)
    assert not failure.permanent
    assert failure.status == status


def test_410_stops_for_good() -> None:
    assert refusal(410).permanent


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://elsewhere.example/x?sig=1", "elsewhere.example"),
        ("/other", "client.example"),
        ("//third.example/", "third.example"),
        ("http://[::1", None),
    ],
)
def test_a_redirect_is_recorded_with_the_host_it_points_to(location: str, host: str | None) -> None:
    failure = refusal(302, Location=location)
    assert failure.outcome is Outcome.REDIRECT
    assert failure.redirect_host == host


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_read_where_it_is_meant(status: int) -> None:
    assert refusal(status, **{"Retry-After": "120"}).retry_after_seconds == 120


def test_retry_after_of_other_answers_is_not_read() -> None:
    assert refusal(500, **{"Retry-After": "120"}).retry_after_seconds is None


def test_retry_after_may_be_an_http_date() -> None:
    value = format_datetime(NOW + timedelta(minutes=7), usegmt=True)
    assert read_retry_after(value, now=NOW) == 420


def test_a_date_that_has_passed_is_now() -> None:
    assert read_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now=NOW) == 0


def test_a_date_with_an_unknown_zone_is_read_as_utc() -> None:
    assert read_retry_after("Fri, 20 Nov 2026 12:00:10 -0000", now=NOW) == 10


@given(st.text())
def test_no_retry_after_breaks_the_reader(value: str) -> None:
    seconds = read_retry_after(value, now=NOW)
    assert seconds is None or seconds >= 0


def test_the_signature_verifies_with_the_library_of_the_receivers() -> None:
    body = encode_body({"prompt": "ein roter Kreis – ✓"}, max_bytes=20_000)
    headers = sign("job-1", body, secret=SECRET)
    assert headers["webhook-id"] == "msg_job-1"
    assert Webhook(SECRET).verify(body, headers) == {"prompt": "ein roter Kreis – ✓"}


def test_another_body_or_another_secret_does_not_verify() -> None:
    headers = sign("job-1", b"{}", secret=SECRET)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b'{"a":1}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(b"{}", headers)


def test_long_texts_of_meta_are_cut_and_nothing_else() -> None:
    body = {"track_id": "t" * 3000, "output": ["https://x/1.png"], "meta": {"prompt": "p" * 30_000, "seed": 7}}
    encoded = encode_body(body, max_bytes=20_000)
    assert len(encoded) < 20_000
    sent = json.loads(encoded)
    assert sent["track_id"] == body["track_id"]
    assert sent["output"] == body["output"]
    assert sent["meta"]["seed"] == 7
    assert sent["meta"]["prompt"] == "p" * 999 + "…"


def test_a_short_body_is_sent_as_it_is() -> None:
    body = {"meta": {"prompt": "p" * 5000}}
    assert json.loads(encode_body(body, max_bytes=20_000)) == body


def test_a_body_that_stays_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="bytes"):
        encode_body({"output": "x" * 30_000}, max_bytes=20_000)


def test_seats_are_counted_per_host_and_given_back() -> None:
    seats = HostSeats(2)
    with seats.taken("slow") as first, seats.taken("slow") as second:
        assert first
        assert second
        with seats.taken("slow") as third, seats.taken("quick") as other:
            assert not third
            assert other
        with seats.taken("slow") as still_none:
            assert not still_none
    with seats.taken("slow") as again:
        assert again


def test_seats_are_never_oversold_by_threads() -> None:
    seats, most, inside, lock = HostSeats(3), 0, 0, threading.Lock()

    def sit() -> None:
        nonlocal most, inside
        for _ in range(200):
            with seats.taken("host") as is_seated:
                if is_seated:
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    with lock:
                        inside -= 1

    threads = [threading.Thread(target=sit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 3


def test_the_default_schedule_is_that_of_standard_webhooks_and_about_three_days() -> None:
    schedule = WebhookSettings().webhook_retry_seconds
    hour = 3600
    assert schedule == (5, 300, 1800, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour)
    assert 3 * 24 <= sum(schedule) / hour <= 3.5 * 24


def test_the_schedule_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_RETRY_SECONDS", "1, 2.5,60")
    assert WebhookSettings().webhook_retry_seconds == (1, 2.5, 60)


def test_a_hold_shorter_than_a_try_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="WEBHOOK_HOLD_SECONDS"):
        WebhookSettings(webhook_timeout_seconds=30, webhook_hold_seconds=31)
