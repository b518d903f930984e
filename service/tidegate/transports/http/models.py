"""Routes of models: list, get, reload, and the stateless calls ``:predict`` and ``:generate``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from tidegate.transports.http import convert, documents, schemas
from tidegate.transports.http.documents import TIMEOUT, body, content, problems
from tidegate.transports.http.errors import read_form
from tidegate.transports.http.exchange import RawRoute, deadline, read_json, reply_in_slices, service_of
from tidegate.transports.http.generation import Generation, sampling, wants_stream

Limit = Annotated[int, Query(ge=0, le=1000, description="Entries a page; 0: 100.", examples=[100])]
PageToken = Annotated[str, Query(description="`next_page_token` of the page before.", examples=[""])]

Name = Annotated[str, Path(description="The model's name.", examples=["shakespeare-lstm"])]
Version = Annotated[str | None, Query(description="Absent: the highest.", examples=["1"])]

router = APIRouter(prefix="/v1/models", tags=["models"])
raw = APIRouter(prefix="/v1/models", tags=["models"], route_class=RawRoute)


@router.get("", responses={200: {"content": {"application/json": content(schemas.ModelList)}}, **problems(400)})
async def list_models(request: Request, limit: Limit = 0, page_token: PageToken = "") -> schemas.ModelList:
    """The models that are loaded."""
    return schemas.ModelList.model_validate(service_of(request).models(limit, page_token))


@router.get(
    "/{model:name}", responses={200: {"content": {"application/json": content(schemas.Model)}}, **problems(404)}
)
async def get_model(request: Request, model: Name, version: Version = None) -> schemas.Model:
    """One version of a model."""
    return schemas.Model.model_validate(service_of(request).model(model, version))


@router.post(":reload", responses={200: {"content": {"application/json": content(schemas.ReloadReport)}}, **problems()})
async def reload(request: Request) -> schemas.ReloadReport:
    """Read the bundle directory again. Running sessions stay on their version."""
    return schemas.ReloadReport.model_validate(await service_of(request).reload())


@raw.post(
    "/{model:name}:predict",
    openapi_extra={"parameters": [TIMEOUT], **body(schemas.Predict)},
    responses={
        200: documents.reply(schemas.PredictReply, "The predictions, in the sequences' order."),
        **problems(400, 404, 413, 429, 503, 504),
    },
)
async def predict(request: Request, model: Name) -> Response:
    """What a model says to whole sequences, many at once and of any lengths."""
    service = service_of(request)
    form = await read_json(request.scope, request.receive, service)
    sequences, options, version = convert.parse_predict(form)
    until = deadline(request.scope, service)
    result = await service.predict(model, version, sequences, options, until)
    return await reply_in_slices(convert.predict_json(result))


@raw.post(
    "/{model:name}:generate",
    openapi_extra={"parameters": [TIMEOUT], **body(schemas.Generate)},
    responses={200: documents.generation(), **problems(400, 404, 413, 429, 501, 503, 504)},
)
async def generate(request: Request, model: Name) -> Response:
    """Sample from a next-token model after a prompt. With `Accept: text/event-stream`, each token as it comes."""
    service = service_of(request)
    document = await read_json(request.scope, request.receive, service)
    form = read_form(schemas.Generate, convert.without_input(document))
    events = service.generate(
        model,
        form.version,
        convert.parse_optional_input(document),
        sampling(form),
        deadline(request.scope, service),
        is_streamed=wants_stream(request),
    )
    return Generation(events, is_streamed=wants_stream(request))
