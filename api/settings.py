"""What the operator may choose about the front end: its addresses, its limits, how long clients wait."""

from __future__ import annotations

from base64 import b64decode
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, field_validator
from pydantic_settings import NoDecode

from storage.settings import DAY_SECONDS, EnvironmentSettings

MEBIBYTE = 1024**2
FAL_PREFIXES = ("queue", "run", "rest", "cdn")
ED25519_SEED_BYTES = 32


class ApiSettings(EnvironmentSettings):
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$",
        description="Where clients reach this service, with a path if it has one. Unset: the request's host.",
    )
    own_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Further hosts (host or host:port, comma separated) under which links to our pictures go.",
    )
    own_ports: Annotated[tuple[PositiveInt, ...], NoDecode] = Field(
        default=(),
        description="Ports (comma separated) of this machine that lead to this service: links to pictures given out "
        "at one are known at the others. deploy/up adds its own.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="CIDRs, comma separated, of the proxies whose X-Forwarded-* headers are believed.",
    )

    wait_seconds: NonNegativeFloat = Field(
        default=15.0, description="How long a submit waits for its result before it answers `processing`."
    )
    max_waiting_clients: NonNegativeInt = Field(
        default=224,
        description="Clients of one process that wait at a time; those beyond are answered `processing` at "
        "once. Below gunicorn's threads, so that some are always free for the others.",
    )

    max_body_bytes: PositiveInt = Field(default=64 * MEBIBYTE, description="Bytes of one request body; above: 413.")
    max_queued_jobs: NonNegativeInt = Field(
        default=100, description="Jobs that one key may have waiting; above: 429. 0: no limit."
    )
    max_submits_per_minute: NonNegativeInt = Field(
        default=0, description="Submits per key and minute; above: 429. 0: no limit."
    )
    max_steps: PositiveInt = Field(
        default=51, description="Denoising steps of one picture; a larger number asked for is capped to this."
    )
    max_prompt_chars: PositiveInt = Field(default=10_000, description="Characters of a prompt.")

    without_safety_checker: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="What becomes of a request that wants its pictures checked where the models file has no "
        "[safety_checker]: it is refused, or painted unchecked, with `meta.ignored` saying so.",
    )
    stability_safety_checker: bool = Field(
        default=True,
        description="Whether pictures for Stability's clients are checked where the models file has a "
        "[safety_checker]. Their requests have no word for it; the vendor's own service always checks.",
    )

    fal_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Host names under which fal's clients reach its four hosts, comma separated: "
        "queue=queue.example.com, run=…, rest=…, cdn=…. The prefixes /queue, /run, /rest and /cdn always work.",
    )
    fal_max_steps: PositiveInt = Field(
        default=150, description="MAX_STEPS for the fal API, whose clients may ask for up to 150."
    )
    fal_run_seconds: PositiveFloat = Field(
        default=600.0, description="How long fal's /run waits for its result; then 504, and the job is cancelled."
    )
    fal_webhook_key: SecretStr | None = Field(
        default=None,
        description="Ed25519 keys that sign fal's webhooks, base64 of 32 bytes each, comma separated: the first "
        "signs, all are published. Unset: made at first use and kept in Redis.",
    )
    max_upload_bytes: PositiveInt = Field(
        default=128 * MEBIBYTE, description="Bytes of one file uploaded through the fal API, in all its parts."
    )
    max_upload_ttl: PositiveFloat = Field(
        default=30 * DAY_SECONDS, description="Seconds to keep such a file at most, where its client names a time."
    )

    auth_cache_seconds: NonNegativeFloat = Field(
        default=3.0, description="How long a key, once checked, is taken as good without asking Redis."
    )

    @field_validator("own_hosts", "own_ports", "trusted_proxies", "fal_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("public_url")
    @classmethod
    def _without_trailing_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @field_validator("own_hosts")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host.lower() for host in value)

    @field_validator("fal_hosts")
    @classmethod
    def _name_prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            prefix, _, host = each.partition("=")
            if prefix.strip() not in FAL_PREFIXES or not host.strip():
                raise ValueError(f"each is PREFIX=HOST, with one of {', '.join(FAL_PREFIXES)} as the prefix")
        return value

    @field_validator("fal_webhook_key")
    @classmethod
    def _has_the_length_of_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        for each in value.get_secret_value().split(",") if value else ():
            try:
                size = len(b64decode(each.strip(), validate=True))
            except ValueError:
                size = 0
            if size != ED25519_SEED_BYTES:
                raise ValueError(f"each key is {ED25519_SEED_BYTES} bytes, base64")
        return value

    @property
    def fal_prefixes(self) -> dict[str, str]:
        """The prefix of each of fal's hosts, by host name in lower case."""
        pairs = (each.partition("=") for each in self.fal_hosts)
        return {host.strip().lower(): prefix.strip() for prefix, _, host in pairs}
