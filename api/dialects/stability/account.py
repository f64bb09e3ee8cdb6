"""What clients ask beside pictures: which engines there are, who they are, what is left."""

from __future__ import annotations

from collections.abc import Iterator

from api.dialects.stability.calls import Call
from api.dialects.stability.errors import Code, WireStatus
from api.dialects.stability.proto import dashboard_pb2, engines_pb2
from api.keys import ApiKey
from api.parts import Parts

OWNER = "inpaintd"
# Nothing is charged for; a number that clients can show, where infinity breaks some.
UNLIMITED_BALANCE = 1_000_000.0


def list_engines(parts: Parts, call: Call, _: engines_pb2.ListEnginesRequest) -> Iterator[engines_pb2.Engines]:
    """Every name that may be an engine_id, but those of other APIs with a slash."""
    call.admit(parts.doorkeeper)
    engines = engines_pb2.Engines()
    for entry in parts.catalog.entries:
        for name in (entry.id, *entry.aliases):
            if "/" not in name:
                engines.engine.add(
                    id=name,
                    owner=OWNER,
                    ready=True,
                    type=engines_pb2.PICTURE,
                    name=entry.name,
                    description=entry.description,
                )
    yield engines


def get_me(parts: Parts, call: Call, _: dashboard_pb2.EmptyRequest) -> Iterator[dashboard_pb2.User]:
    """A key is its own user, in an organization of its own."""
    api_key = call.admit(parts.doorkeeper)
    member = dashboard_pb2.OrganizationMember(
        organization=_organization(api_key), role=dashboard_pb2.OWNER, is_default=True
    )
    yield dashboard_pb2.User(id=api_key.key_id, organizations=[member], created_at=int(api_key.created_at))


def get_organization(
    parts: Parts, call: Call, request: dashboard_pb2.GetOrganizationRequest
) -> Iterator[dashboard_pb2.Organization]:
    api_key = call.admit(parts.doorkeeper)
    if request.id not in ("", api_key.key_id):
        raise WireStatus(Code.NOT_FOUND, "There is no such organization.")
    yield _organization(api_key)


def _organization(api_key: ApiKey) -> dashboard_pb2.Organization:
    balance = dashboard_pb2.OrganizationPaymentInfo(balance=UNLIMITED_BALANCE)
    return dashboard_pb2.Organization(id=api_key.key_id, name=api_key.name, payment_info=balance)
