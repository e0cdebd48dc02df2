"""The async views. Streams are async generators: Django reads a synchronous one to its end before
it sends the first token.
"""

import logging
from collections.abc import AsyncIterator
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_safe

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError
from servers.django_channels.generation import engine, generated


@require_safe
async def health(_: HttpRequest) -> HttpResponse:
    return JsonResponse({"status": "ok"})


@require_safe
async def models(_: HttpRequest) -> HttpResponse:
    return JsonResponse(api.models_body(engine.model))


async def completions(request: HttpRequest, kind: Any) -> HttpResponse:
    try:
        if request.method != "POST":
            raise ContractError(405, "use POST, or upgrade to a WebSocket")
        wanted = api.parse_request(kind, request.body)
        job = engine.prepare(wanted)
    except ContractError as error:
        return refused(error)
    reply = CompletionResponse(wanted, engine.model)
    if wanted.stream:
        return StreamingHttpResponse(
            events(job, reply), content_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    *pieces, outcome = [item async for item in generated(job)]
    return JsonResponse(reply.complete("".join(pieces), outcome))


async def events(job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    try:
        async for item in generated(job):
            yield reply.event(item)
    except Exception as error:
        logging.exception("generation failed")
        yield reply.event(error)


def refused(error: ContractError, *_: object, **__: object) -> HttpResponse:
    return JsonResponse(error.body(), status=error.status, headers=error.headers)
