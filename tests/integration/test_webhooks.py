"""Webhooks to real receivers: signed, tried again on schedule, given up, sent again. The clock is ours."""

from __future__ import annotations

import socket
import sys
import threading
import time
from email.utils import formatdate
from ipaddress import ip_network
from types import ModuleType

import pytest
from structlog.testing import capture_logs
from werkzeug import Response

from api.delivery_log import Outcome, WebhookState
from api.keys import KeyStore
from api.webhook_message import WebhookMessage
from api.webhooks import Courier, WebhookSettings
from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.outbound import OutboundDoor
from tests.jobs import a_job
from tests.servers import RedisServer, free_port
from tests.webhook_scenes import Inbox, Receiver, Scene, elsewhere, inbox_and_url, plain, receiver

__all__ = ["elsewhere", "inbox_and_url", "plain", "receiver"]

pytestmark = pytest.mark.usefixtures("plain")
HOUR = 3600.0
Target = tuple[Inbox, str]


@pytest.fixture
def scene(redis_url: str) -> Scene:
    return Scene(redis_url)


def test_a_webhook_is_posted_once_with_a_signature_of_the_keys_own_secret(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    job = scene.over(url, track_id="order_1", prompt="ein Kreis – ✓")
    scene.work()
    assert inbox.verified(scene.key.webhook_secret) == [
        {"status": "succeeded", "track_id": "order_1", "meta": {"prompt": "ein Kreis – ✓"}}
    ]
    headers, _ = inbox.requests[0]
    assert headers["content-type"] == "application/json"
    assert headers["x-dialect"] == "plain"
    assert headers["webhook-id"] == f"msg_{job.job_id}"
    scene.clock.advance(30 * 24 * HOUR)
    assert scene.due() == []


def test_the_log_and_the_status_follow_a_webhook(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 500)
    waiting = scene.jobs.submit(a_job(webhook_url=url))
    assert scene.log.webhook_status(waiting) == "queued"
    scene.jobs.cancel(waiting.job_id)
    scene.jobs.clear_webhook(waiting.job_id)
    job = scene.over(url)
    assert scene.log.webhook_status(job) == "queued"
    scene.work()
    assert scene.log.webhook_status(job) == "retrying"
    scene.clock.advance(6)
    inbox.answer = Response("", 204)
    scene.work()
    assert scene.log.webhook_status(job) == "delivered"
    first, second = scene.log.tries(job.job_id)
    assert (first.number, first.outcome, first.status) == (1, Outcome.STATUS, 500)
    assert (second.number, second.outcome, second.status) == (2, Outcome.DELIVERED, 204)
    assert first.next_at is not None
    assert second.next_at is None
    assert second.at == scene.clock()


def test_a_job_without_a_webhook_has_no_webhook_status(scene: Scene) -> None:
    job = scene.over(None)
    assert scene.log.webhook_status(job) == ""
    assert scene.due() == []


@pytest.mark.parametrize("stretch", [0.0, 0.5, 1.0])
def test_a_failing_webhook_is_tried_ten_times_in_about_three_days_and_then_given_up(
    scene: Scene, inbox_and_url: Target, stretch: float
) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 500)
    scene.stretch = stretch
    job = scene.over(url)
    began = scene.clock()
    for wait in (5, 300, 1800, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR):
        assert len(scene.work()) == 1
        longer = wait * (1 + 0.1 * stretch)
        assert scene.seconds_to_next(job) == pytest.approx(longer, abs=1)
        scene.clock.advance(longer - 2)
        assert scene.due() == []
        scene.clock.advance(4)
    scene.work()
    assert len(inbox.ids) == 10
    assert set(inbox.ids) == {f"msg_{job.job_id}"}
    assert scene.standing(job).state is WebhookState.FAILED
    assert 3 <= (scene.clock() - began) / (24 * HOUR) <= 3.6
    scene.clock.advance(30 * 24 * HOUR)
    assert scene.due() == []


def test_the_jitter_is_random_and_within_its_bounds(redis_url: str, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 500)
    scene = Scene(redis_url, webhook_retry_seconds=(1000.0,), webhook_retry_jitter=0.5)
    courier = Courier(
        jobs=scene.jobs,
        keys=scene.keys,
        log=scene.log,
        door=OutboundDoor(allowed_private_networks=[ip_network("127.0.0.0/8")]),
        settings=scene.settings,
        delivery_ttl_seconds=60,
    )
    waits = []
    for _ in range(12):
        job = scene.over(url)
        courier.deliver(job.job_id)
        waits.append(scene.seconds_to_next(job))
    assert len({round(wait) for wait in waits}) > 6
    assert all(1000 <= wait <= 1502 for wait in waits)


def test_every_try_is_signed_anew_under_the_same_id(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 500)
    scene.over(url)
    scene.work()
    scene.clock.advance(6)
    time.sleep(1.1)
    scene.work()
    assert len(inbox.verified(scene.key.webhook_secret)) == 2
    (first, _), (second, _) = inbox.requests
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-timestamp"] < second["webhook-timestamp"]
    assert first["webhook-signature"] != second["webhook-signature"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_is_obeyed(scene: Scene, inbox_and_url: Target, status: int) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", status, {"Retry-After": "90"})
    job = scene.over(url)
    scene.work()
    assert scene.seconds_to_next(job) == pytest.approx(90, abs=1)


def test_retry_after_as_a_date_is_obeyed(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 503, {"Retry-After": formatdate(time.time() + 600, usegmt=True)})
    job = scene.over(url)
    scene.work()
    assert scene.seconds_to_next(job) == pytest.approx(600, abs=3)


@pytest.mark.parametrize(("asked_for", "waited"), [("0", 5), ("1", 5), ("99999999999", 24 * HOUR), ("soon", 5)])
def test_retry_after_is_bounded(scene: Scene, inbox_and_url: Target, asked_for: str, waited: float) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 429, {"Retry-After": asked_for})
    job = scene.over(url)
    scene.work()
    assert scene.seconds_to_next(job) == pytest.approx(waited, abs=1)


def test_410_stops_for_good(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 410)
    job = scene.over(url)
    scene.work()
    assert scene.log.webhook_status(job) == "failed"
    assert (scene.last_try(job).status, scene.last_try(job).next_at) == (410, None)
    scene.clock.advance(30 * 24 * HOUR)
    assert scene.due() == []


def test_a_redirect_is_recorded_and_not_followed(scene: Scene, inbox_and_url: Target, elsewhere: Receiver) -> None:
    inbox, url = inbox_and_url
    elsewhere.inbox = Inbox()
    inbox.answer = Response("", 307, {"Location": elsewhere.url + "?token=private"})
    job = scene.over(url)
    with capture_logs() as lines:
        scene.work()
    assert elsewhere.inbox.requests == []
    attempt = scene.last_try(job)
    assert (attempt.outcome, attempt.status, attempt.redirect_host) == (Outcome.REDIRECT, 307, "127.0.0.2")
    assert scene.log.webhook_status(job) == "retrying"
    line = next(line for line in lines if line["event"] == "webhook tried")
    assert line["redirect_host"] == "127.0.0.2"
    assert "private" not in str(lines)


def test_a_receiver_that_hangs_is_left_after_the_time_out(redis_url: str, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.hangs = True
    scene = Scene(redis_url, webhook_timeout_seconds=0.4)
    job = scene.over(url)
    before = time.monotonic()
    scene.work()
    assert time.monotonic() - before < 2
    assert (scene.last_try(job).outcome, scene.last_try(job).status) == (Outcome.TIMED_OUT, None)
    assert scene.last_try(job).duration_seconds == pytest.approx(0.4, abs=0.4)
    assert scene.log.webhook_status(job) == "retrying"


def test_an_answer_without_end_is_too_large(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response(b"x" * (2 << 20), 200)
    job = scene.over(url)
    scene.work()
    assert scene.last_try(job).outcome is Outcome.TOO_LARGE


def test_a_receiver_that_is_not_there_is_tried_again(scene: Scene) -> None:
    job = scene.over(f"http://127.0.0.1:{free_port()}/hook")
    scene.work()
    assert scene.last_try(job).outcome is Outcome.UNREACHABLE
    assert scene.log.webhook_status(job) == "retrying"


def test_a_name_that_does_not_resolve_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    job = scene.over("http://receiver.invalid/hook")
    scene.work()
    assert scene.last_try(job).outcome is Outcome.UNRESOLVED
    assert scene.log.webhook_status(job) == "retrying"


@pytest.mark.parametrize("url", ["http://10.0.0.1/hook", "http://169.254.169.254/hook", "ftp://127.0.0.1/hook"])
def test_an_address_that_may_not_be_called_stops_for_good(scene: Scene, url: str) -> None:
    job = scene.over(url)
    scene.work()
    assert scene.last_try(job).outcome is Outcome.REFUSED
    assert scene.log.webhook_status(job) == "failed"
    assert scene.due() == []


def test_a_connection_cut_short_is_tried_again(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def cut() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.close()

        cutting = threading.Thread(target=cut)
        cutting.start()
        job = scene.over(f"http://127.0.0.1:{port}/hook")
        scene.work()
        cutting.join()
    assert scene.last_try(job).outcome is Outcome.UNREACHABLE
    assert scene.log.webhook_status(job) == "retrying"


def test_a_repeated_message_delivers_nothing(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    delivered = scene.over(url)
    for _ in range(3):
        scene.courier.deliver(delivered.job_id)
    assert len(inbox.ids) == 1
    inbox.answer = Response("", 500)
    failing = scene.over(url)
    for _ in range(3):
        scene.courier.deliver(failing.job_id)
    assert len(inbox.ids) == 2


def test_messages_that_come_together_deliver_once(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    job = scene.over(url)
    couriers = [scene.a_courier() for _ in range(8)]
    threads = [threading.Thread(target=courier.deliver, args=(job.job_id,)) for courier in couriers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inbox.ids) == 1
    assert scene.log.webhook_status(job) == "delivered"


def test_a_delivery_whose_outcome_was_never_stored_comes_again(
    scene: Scene, inbox_and_url: Target, redis_server: RedisServer
) -> None:
    inbox, url = inbox_and_url
    job = scene.over(url)
    assert scene.due() == [job.job_id]
    inbox.hangs = True
    raised: list[BaseException] = []

    def deliver() -> None:
        try:
            scene.courier.deliver(job.job_id)
        except StorageUnavailable as error:
            raised.append(error)

    delivering = threading.Thread(target=deliver)
    delivering.start()
    assert inbox.received.acquire(timeout=5)
    redis_server.stop()
    try:
        inbox.let_go.set()
        delivering.join(10)
    finally:
        redis_server.start()
    assert len(raised) == 1
    scene.client.delete(f"inpaintd:delivering:{job.job_id}")  # in real time it runs out by itself
    scene.clock.advance(scene.settings.webhook_hold_seconds - 1)
    assert scene.work() == []
    scene.clock.advance(1)
    scene.work()
    assert inbox.ids == [f"msg_{job.job_id}"] * 2
    assert scene.log.webhook_status(job) == "delivered"


def test_a_crowd_for_one_host_leaves_seats_for_others(
    redis_url: str, inbox_and_url: Target, elsewhere: Receiver
) -> None:
    inbox, slow_url = inbox_and_url
    inbox.hangs = True
    scene = Scene(redis_url, webhook_threads_per_host=2)
    slow = [scene.over(slow_url) for _ in range(5)]
    threads = [threading.Thread(target=scene.courier.deliver, args=(job.job_id,)) for job in slow[:2]]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inbox.received.acquire(timeout=5)
    said = [scene.courier.deliver(job.job_id) for job in slow[2:]]
    assert all("busy" in each for each in said)
    assert [scene.standing(job).tries for job in slow[2:]] == [0, 0, 0]
    elsewhere.inbox = Inbox()
    job = scene.over(elsewhere.url)
    scene.courier.deliver(job.job_id)
    assert elsewhere.inbox.ids == [f"msg_{job.job_id}"]
    inbox.let_go.set()
    for thread in threads:
        thread.join()
    scene.clock.advance(5)
    scene.work()
    assert sorted(inbox.ids) == sorted(f"msg_{job.job_id}" for job in slow)


def test_the_log_is_bounded(redis_url: str, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 500)
    scene = Scene(redis_url)
    scene.log._tries_kept = 4
    job = scene.over(url)
    for _ in range(7):
        scene.work()
        scene.clock.advance(30 * HOUR)
    assert [attempt.number for attempt in scene.log.tries(job.job_id)] == [4, 5, 6, 7]


def test_a_dialect_that_breaks_is_logged_and_tried_again(
    scene: Scene, inbox_and_url: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, url = inbox_and_url
    module = ModuleType("api.dialects.broken")

    def render_webhook(job: InpaintJob) -> WebhookMessage:
        raise RuntimeError("a secret of ours")

    vars(module)["render_webhook"] = render_webhook
    monkeypatch.setitem(sys.modules, "api.dialects.broken", module)
    job = scene.over(url, dialect="broken")
    scene.work()
    assert inbox.requests == []
    assert scene.last_try(job).outcome is Outcome.INTERNAL_ERROR
    assert "secret" not in str(scene.last_try(job))
    assert scene.log.webhook_status(job) == "retrying"


def test_jobs_of_different_keys_are_signed_with_different_secrets(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    other, _ = KeyStore(scene.client).create(name="other")
    scene.over(url, key_id=other.key_id)
    scene.work()
    assert len(inbox.verified(other.webhook_secret)) == 1


def test_a_revoked_keys_last_webhooks_are_still_signed(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    scene.over(url)
    scene.keys.revoke(scene.key.key_id)
    scene.work()
    assert len(inbox.verified(scene.key.webhook_secret)) == 1


def test_a_job_whose_record_is_gone_is_forgotten(scene: Scene, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    job = scene.over(url)
    scene.jobs.drop_record(job.job_id)
    scene.jobs.set_webhook_due(job.job_id, 0)
    scene.work()
    assert inbox.requests == []
    scene.clock.advance(HOUR)
    assert scene.due() == []


def test_no_log_line_carries_a_secret(scene: Scene, inbox_and_url: Target) -> None:
    _, url = inbox_and_url
    with capture_logs() as lines:
        scene.over(url + "?token=private")
        scene.work()
    assert len(lines) == 1
    assert "private" not in str(lines)
    assert scene.key.webhook_secret not in str(lines)


def test_the_settings_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_TIMEOUT_SECONDS", "3")
    assert WebhookSettings().webhook_timeout_seconds == 3
