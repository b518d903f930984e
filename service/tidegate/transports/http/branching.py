"""Routes that branch: ``:fork``, ``:checkpoint``, ``:rewind``, ``:upgrade``, ``snapshot`` and ``:restore``.

Knows bodies and queries. What a state or a snapshot holds is the core's business: here it is bytes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from tidegate.api import RestoreRequest
from tidegate.transports.http import documents, schemas
from tidegate.transports.http.documents import OCTETS, body, octets, problems
from tidegate.transports.http.errors import read_form
from tidegate.transports.http.exchange import (
    Json,
    RawRoute,
    json_reply,
    link,
    read_body,
    read_json,
    reply_in_slices,
    service_of,
)
from tidegate.transports.http.sessions import PREFIX, Id

router = APIRouter(prefix=PREFIX, tags=["sessions"])
raw = APIRouter(prefix=PREFIX, tags=["sessions"], route_class=RawRoute)


@raw.post(
    "/{session:name}:fork",
    openapi_extra=body(schemas.Fork, is_required=False),
    responses={
        200: documents.reply(schemas.Forks, "The new sessions; or those there are, if an equal request forked them."),
        **problems(400, 404, 409, 410, 412, 413, 429, 503),
    },
)
async def fork(request: Request, session: Id) -> Response:
    """Open new sessions that go on from where this one is, under ids of your own or as many as you like."""
    form = read_form(schemas.Fork, await _read_wishes(request))
    forks = await service_of(request).fork_session(session, form.ids, form.count)
    return await reply_in_slices({"sessions": map(schemas.Session.model_validate, forks)})


@raw.post(
    "/{session:name}:checkpoint",
    openapi_extra=body(schemas.MakeCheckpoint, is_required=False),
    responses={
        200: documents.reply(schemas.Checkpoint, "The checkpoint's name, and the position that it keeps."),
        **problems(400, 404, 410, 412, 413, 503),
    },
)
async def checkpoint(request: Request, session: Id) -> Response:
    """Keep where the session is, to come back to it. A session has eight checkpoints; the oldest makes room."""
    form = read_form(schemas.MakeCheckpoint, await _read_wishes(request))
    kept = await service_of(request).checkpoint_session(session, form.name)
    return json_reply(schemas.Checkpoint.model_validate(kept))


@raw.post(
    "/{session:name}:rewind",
    openapi_extra=body(schemas.Rewind),
    responses={
        200: documents.reply(schemas.Session, "The session, at the checkpoint's position."),
        **problems(400, 404, 410, 412, 413, 429, 503),
    },
)
async def rewind(request: Request, session: Id) -> Response:
    """Take the session back to a checkpoint, which stays."""
    service = service_of(request)
    form = read_form(schemas.Rewind, await read_json(request.scope, request.receive, service))
    info = await service.rewind_session(session, form.checkpoint)
    return json_reply(schemas.Session.model_validate(info))


@raw.post(
    "/{session:name}:upgrade",
    openapi_extra=body(schemas.Upgrade, is_required=False),
    responses={
        200: documents.reply(schemas.Session, "The session, on its new version."),
        **problems(400, 404, 410, 412, 413, 429, 503),
    },
)
async def upgrade(request: Request, session: Id) -> Response:
    """Let another version of its model, of the same state layout, take the session over where it is."""
    form = read_form(schemas.Upgrade, await _read_wishes(request))
    info = await service_of(request).upgrade_session(session, form.version)
    return json_reply(schemas.Session.model_validate(info))


@router.get(
    "/{session:name}/snapshot",
    response_class=Response,
    responses={
        200: octets("The session as portable bytes, for `:restore` here or on another server.")
        | {"headers": {"Content-Disposition": {"description": "A file's name.", "schema": documents.STRING}}},
        **problems(404, 410, 412, 503),
    },
)
async def snapshot(request: Request, session: Id) -> Response:
    """Where the session is, as bytes that say of which model and version they are, with a checksum."""
    data = await service_of(request).snapshot_session(session)
    name = {"Content-Disposition": f'attachment; filename="{quote(session)}.snapshot"'}
    return Response(data, headers=name, media_type=OCTETS)


@router.post(
    ":restore",
    response_class=Response,
    status_code=HTTPStatus.CREATED,
    openapi_extra={"requestBody": {"required": True, **octets("What `snapshot` answered.")}},
    responses={
        201: documents.reply(schemas.Session, "The new session.") | {"headers": documents.LOCATION},
        **problems(400, 404, 409, 412, 413, 429, 503),
    },
)
async def restore(request: Request, wish: Annotated[schemas.Restore, Query()]) -> Response:
    """Open a session from a snapshot. What it asks of the new session stands in the query: the body is the snapshot."""
    service = service_of(request)
    data = await read_body(request.scope, request.receive, service)
    info = await service.restore_session(data, RestoreRequest(**wish.model_dump()))
    place = {"Location": link(request, f"{PREFIX}/{quote(info.id)}")}
    return json_reply(schemas.Session.model_validate(info), HTTPStatus.CREATED, place)


async def _read_wishes(request: Request) -> dict[str, Json]:
    """The body of a request that may wish for nothing in particular, and then needs no body."""
    return await read_json(request.scope, request.receive, service_of(request), may_be_empty=True)
