"""The dialect of fal's queue and sync APIs, for its endpoint `fal-ai/inpaint`: submit, status, result, run, uploads."""

from __future__ import annotations

from flask import Blueprint

from api.dialects.fal import openapi, queue, sync, tokens, uploads
from api.dialects.fal.answers import name_the_request
from api.dialects.fal.output import render_webhook
from api.dialects.fal.words import render_error

__all__ = ["NAME", "PATH_PREFIXES", "blueprint", "render_error", "render_webhook"]

NAME = "fal"
# fal's four hosts, each below a prefix of its own.
PATH_PREFIXES = ("/queue/", "/run/", "/rest/", "/cdn/", "/api/fal/", "/api/openapi/")

blueprint = Blueprint(NAME, __name__)
for _views in (queue, sync, uploads, tokens, openapi):
    _views.add_to(blueprint)
blueprint.after_app_request(lambda response: name_the_request(response, PATH_PREFIXES))
