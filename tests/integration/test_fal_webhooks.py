"""fal's webhooks through the one dispatcher: body and signature as a receiver checks them, and the keys' rotation."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from api.delivery_log import DeliveryLog
from api.dialects.fal import cli, signatures
from api.keys import KeyStore
from api.webhooks import Courier, WebhookSettings
from storage.job import Failure
from storage.settings import storage_settings
from tests.fal_clients import APP, Fal, fal_input, verified
from tests.front_end import FrontEnd, front_end, open_with
from tests.webhook_scenes import Inbox, Receiver, inbox_and_url, receiver

__all__ = ["front_end", "inbox_and_url", "open_with", "receiver"]

DAY_SECONDS = 24 * 3600.0


@pytest.fixture
def fal(front_end: FrontEnd) -> Fal:
    return Fal(front_end)


@pytest.fixture
def courier(front_end: FrontEnd) -> Courier:
    """As the dispatcher composes it."""
    parts = front_end.parts
    signer = signatures.open_signing_keys(parts.redis, None)
    return Courier(
        jobs=parts.jobs,
        keys=KeyStore(parts.redis),
        log=DeliveryLog(parts.redis),
        door=parts.door,
        settings=WebhookSettings(),
        delivery_ttl_seconds=DAY_SECONDS,
        signatures={"fal": lambda job, body: signer.headers(job, body, now=time.time())},
    )


def submitted(fal: Fal, url: str, **changes: Any) -> str:
    answer = fal.call("POST", APP, query_string={"fal_webhook": url}, json=fal_input(**changes))
    body = answer.get_json()
    assert body["gateway_request_id"] == body["request_id"]
    request_id: str = body["request_id"]
    return request_id


def delivered(fal: Fal, courier: Courier, inbox: Inbox) -> tuple[dict[str, str], bytes]:
    (job_id,) = fal.front_end.parts.jobs.claim_due_webhooks(10, hold_seconds=60)
    assert courier.deliver(job_id).endswith("delivered 200")
    return inbox.requests[-1]


def test_success_is_told_with_the_output_under_a_signature_that_holds(
    fal: Fal, courier: Courier, inbox_and_url: tuple[Inbox, str]
) -> None:
    inbox, url = inbox_and_url
    request_id = submitted(fal, url)
    fal.finish(fal.claimed())
    headers, body = delivered(fal, courier, inbox)
    told = json.loads(body)
    output = fal.result(request_id).get_json()
    assert told == {"request_id": request_id, "gateway_request_id": request_id, "status": "OK", "payload": output}
    assert headers["x-fal-webhook-request-id"] == request_id
    assert headers["x-fal-webhook-user-id"] == fal.front_end.api_key.key_id
    jwks = fal.client.get("/.well-known/jwks.json").get_json()
    assert verified(headers, body, jwks)
    assert not verified(headers, body + b" ", jwks)
    assert inbox.verified(fal.front_end.api_key.webhook_secret)


@pytest.mark.parametrize("kind", ["from the start", "in the worker"])
def test_failure_is_told_with_what_the_result_says(
    fal: Fal, courier: Courier, inbox_and_url: tuple[Inbox, str], kind: str
) -> None:
    inbox, url = inbox_and_url
    request_id = submitted(fal, url, **({"seed": "x"} if kind == "from the start" else {}))
    if kind == "in the worker":
        job = fal.claimed()
        fal.front_end.parts.jobs.finish(job.failed(Failure(code="input_unreachable", message="-"), at=time.time()))
    _, body = delivered(fal, courier, inbox)
    told = json.loads(body)
    assert (told["status"], told["error"]) == ("ERROR", "Invalid status code: 422")
    assert told["payload"] == fal.result(request_id).get_json()


# -- keys -------------------------------------------------------------------------------------------


def test_all_replicas_share_one_key_and_none_shows_the_private_half(fal: Fal) -> None:
    first = fal.client.get("/.well-known/jwks.json")
    second = fal.client.get("/rest/.well-known/jwks.json")
    (key,) = first.get_json()["keys"]
    assert first.get_json() == second.get_json()
    assert {"kty": "OKP", "crv": "Ed25519"}.items() <= key.items()
    assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert "max-age" in first.headers["Cache-Control"]


def test_a_rotated_key_is_published_before_it_signs_and_the_old_one_stays_for_a_while(fal: Fal) -> None:
    client = fal.front_end.parts.redis
    signer = signatures.open_signing_keys(client, None)
    before = signer.current(now=time.time()).key_id
    added = signatures.rotate(client)
    now = time.time()
    assert [key["kid"] for key in signer.jwks(now=now)["keys"]] == [before, added.key_id]
    assert signer.current(now=now).key_id == before
    assert signer.current(now=now + DAY_SECONDS + 1).key_id == added.key_id
    assert len(signer.jwks(now=now + 7 * DAY_SECONDS)["keys"]) == 2
    assert [key["kid"] for key in signer.jwks(now=now + 9 * DAY_SECONDS)["keys"]] == [added.key_id]


def test_the_operator_rotates_and_sees_the_keys_by_command(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    storage_settings.cache_clear()
    runner = CliRunner()
    try:
        assert runner.invoke(cli.fal, ["rotate-signing-key", "--after", "0"]).exit_code == 0
        lines = runner.invoke(cli.fal, ["signing-keys"]).output.splitlines()
        monkeypatch.setenv("FAL_WEBHOOK_KEY", base64.b64encode(bytes(32)).decode())
        refused = runner.invoke(cli.fal, ["rotate-signing-key"])
    finally:
        storage_settings.cache_clear()
    assert [line.split()[1] for line in lines] == ["published", "signs"]
    assert refused.exit_code == 1


def test_the_operators_own_keys_sign_and_are_published() -> None:
    seeds = [base64.b64encode(bytes([each]) * 32).decode() for each in (1, 2)]
    given = SecretStr(",".join(seeds))
    signer = signatures.open_signing_keys(None, given)  # type: ignore[arg-type]  # which is not asked
    assert signer.current(now=time.time()).seed == seeds[0]
    assert len(signer.jwks(now=time.time())["keys"]) == 2


@pytest.fixture(autouse=True)
def _nobody_listens_any_more(receiver: Receiver) -> Iterator[None]:
    yield
    receiver.inbox = Inbox()
