"""Routes of sessions: open, list, get, close, ``:generate`` and ``:step``."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Annotated, Any, cast
from urllib.parse import quote

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from tidegate.api import SessionInfo, SessionRequest
from tidegate.transports.http import convert, documents, schemas
from tidegate.transports.http.documents import TIMEOUT, body, content, problems
from tidegate.transports.http.errors import read_form
from tidegate.transports.http.exchange import (
    RawRoute,
    deadline,
    json_reply,
    link,
    read_json,
    reply_in_slices,
    service_of,
)
from tidegate.transports.http.generation import Generation, sampling, wants_stream
from tidegate.transports.http.models import Limit, PageToken

log = logging.getLogger(__name__)

PREFIX = "/v1/sessions"

Id = Annotated[str, Path(description="The session.", examples=["reader-1"])]

router = APIRouter(prefix=PREFIX, tags=["sessions"])
raw = APIRouter(prefix=PREFIX, tags=["sessions"], route_class=RawRoute)

WORK = problems(400, 404, 409, 410, 412, 413, 429, 503, 504)


def session_request(document: dict[str, Any]) -> SessionRequest:
    """Return the wish to open a session that a body holds."""
    inputs = convert.parse_settings(document)
    form = read_form(schemas.OpenSession, convert.without_settings(document))
    return SessionRequest(**form.model_dump(exclude={convert.SETTINGS}), inputs=inputs)


@raw.post(
    "",
    status_code=HTTPStatus.CREATED,
    openapi_extra=body(schemas.OpenSession),
    responses={
        201: documents.reply(schemas.Session, "The session; or the one there is, if it was opened by an equal request.")
        | {"headers": documents.LOCATION},
        **problems(400, 404, 409, 412, 429, 503),
    },
)
async def open_session(request: Request) -> Response:
    """Open a session. With an id of your own, an equal repeat returns what exists."""
    service = service_of(request)
    document = await read_json(request.scope, request.receive, service)
    info = await service.open_session(session_request(document))
    session = schemas.Session.model_validate(info)
    return json_reply(session, HTTPStatus.CREATED, {"Location": link(request, f"{PREFIX}/{quote(session.id)}")})


@router.get("", responses={200: {"content": {"application/json": content(schemas.SessionList)}}, **problems(400)})
async def list_sessions(request: Request, limit: Limit = 0, page_token: PageToken = "") -> Response:
    """The sessions that are open."""
    page = await service_of(request).list_sessions(limit, page_token)
    told = (session for info in page.sessions if (session := _told(info)) is not None)
    return await reply_in_slices({"sessions": told, "next_page_token": page.next_page_token})


def _told(info: SessionInfo) -> schemas.Session | None:
    """The session's document; None of one that has none, which hides no other."""
    try:
        return schemas.Session.model_validate(info)
    except Exception:
        log.exception("session %s cannot be listed", info.id)
        return None


@router.get(
    "/{session:name}",
    responses={200: {"content": {"application/json": content(schemas.Session)}}, **problems(404, 410)},
)
async def get_session(request: Request, session: Id) -> schemas.Session:
    """Where a session is."""
    return schemas.Session.model_validate(await service_of(request).get_session(session))


@router.delete("/{session:name}", status_code=HTTPStatus.NO_CONTENT, response_class=Response, responses=problems(404))
async def close_session(request: Request, session: Id) -> None:
    """End a session. Closing twice succeeds."""
    await service_of(request).close_session(session)


@raw.post(
    "/{session:name}:generate",
    openapi_extra={"parameters": [TIMEOUT], **body(schemas.SessionGenerate)},
    responses={200: documents.generation(), **WORK, **problems(501)},
)
async def generate(request: Request, session: Id) -> Response:
    """Go on from where the session is, after a prompt or without. Every returned token is consumed by the session."""
    service = service_of(request)
    document = await read_json(request.scope, request.receive, service)
    form = read_form(schemas.SessionGenerate, convert.without_input(document))
    events = service.generate_on_session(
        session,
        convert.parse_optional_input(document),
        sampling(form),
        form.position,
        deadline(request.scope, service),
        is_streamed=wants_stream(request),
    )
    return Generation(events, is_streamed=wants_stream(request))


@raw.post(
    "/{session:name}:step",
    openapi_extra={"parameters": [TIMEOUT], **body(schemas.Step)},
    responses={200: documents.reply(schemas.StepReply, "The prediction after the chunk."), **WORK},
)
async def step(request: Request, session: Id) -> Response:
    """Send a session its next steps. With `position`, a repeat is answered again and never applied twice."""
    # The application finds steps before it asks a router: see step.py.
    return cast("Response", request.app.state.steps)  # an application, as every response is
