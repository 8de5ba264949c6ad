"""The routes. Bodies are read by `bodies`, answers written by `answers`; the tokens come from `worker`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from smallgpt import __version__
from smallgpt.interfaces.http.answers import DONE, Answer, ChatAnswer, CompletionAnswer, event
from smallgpt.interfaces.http.bodies import ChatBody, CompletionBody, parse
from smallgpt.interfaces.http.description import as_page
from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.guard import Access, App, Guard, Receive, Scope, Send
from smallgpt.interfaces.http.limits import Limits
from smallgpt.interfaces.http.metrics import Metrics
from smallgpt.interfaces.http.planning import Plan, Served, plan_chat, plan_completion
from smallgpt.interfaces.http.tickets import Piece, Ticket
from smallgpt.interfaces.http.worker import Worker

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
SCHEMAS: dict[str, type[BaseModel]] = {"CompletionBody": CompletionBody, "ChatBody": ChatBody}
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field is wrong; the message says which, and what it must be."},
    401: {"description": "The API key is missing or wrong."},
    403: {"description": "The Host or Origin header is another site's."},
    404: {"description": "There is no such model or path."},
    408: {"description": "The body came too slowly."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is not sent as application/json."},
    429: {"description": "The queue is full; Retry-After says when to try again."},
    500: {"description": "The model failed."},
    503: {"description": "The server is stopping, or no stream became free in time."},
}


def make_app(served: Served, worker: Worker, limits: Limits, metrics: Metrics, access: Access, *, log: bool) -> App:
    """The whole server as an ASGI application, which starts the worker and closes it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.start(asyncio.get_running_loop())
        yield
        worker.close()

    app = FastAPI(title="smallgpt", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    _add_errors(app)
    _add_generation(app, served, worker, limits)
    _add_models(app, served)
    _add_looking(app, worker, metrics)
    _add_page(app)
    _add_description(app)
    return Guard(app, access, limits, metrics, log=log)


def _add_errors(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status, error.headers)

    async def routing_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = f"{request.method} is not answered here" if error.status_code == 405 else "there is nothing here"
        told = ApiError(error.status_code, f"{words}; /docs lists what there is", headers=error.headers)
        return await api_error(request, told)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, routing_error)


def _add_generation(app: FastAPI, served: Served, worker: Worker, limits: Limits) -> None:
    async def begin(request: Request, plan: Plan, body: CompletionBody | ChatBody, kind: type[Answer]) -> Response:
        if body.model not in (None, served.name):
            raise _no_model(body.model, served)
        ticket = Ticket(request.scope["smallgpt.client"], plan.requests, body.stops, served.tokenizer)
        answer = kind(served.name, served.tokenizer, [r.prompt for r in plan.requests], plan.echoes)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        worker.submit(ticket)
        return Reply(ticket, answer, worker, stream=bool(body.stream), usage=usage)

    @app.post("/v1/completions", response_class=JSONResponse, responses=REFUSED, openapi_extra=_takes("CompletionBody"))
    async def completions(request: Request) -> Response:
        """Continue a beginning, or several."""
        body = parse(CompletionBody, await _json_body(request))
        plan = await asyncio.to_thread(plan_completion, body, served, limits)
        return await begin(request, plan, body, CompletionAnswer)

    @app.post("/v1/chat/completions", response_class=JSONResponse, responses=REFUSED, openapi_extra=_takes("ChatBody"))
    async def chat_completions(request: Request) -> Response:
        """Continue a story whose beginning is the messages' texts, joined."""
        body = parse(ChatBody, await _json_body(request))
        plan = await asyncio.to_thread(plan_chat, body, served, limits)
        return await begin(request, plan, body, ChatAnswer)


def _takes(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"the Content-Type is {kind[:100]!r}; send application/json")
    return await request.body()


def _no_model(name: str | None, served: Served) -> ApiError:
    words = f"there is no model {str(name)[:100]!r}; this server has {served.name!r}"
    return ApiError(404, words, param="model", code="model_not_found")


def _add_models(app: FastAPI, served: Served) -> None:
    model = {"id": served.name, "object": "model", "created": 0, "owned_by": "smallgpt"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", responses={404: REFUSED[404]})
    async def one_model(name: str) -> dict[str, Any]:
        """The model of that id."""
        if name != served.name:  # compared, and never a path
            raise _no_model(name, served)
        return model


def _add_looking(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    @app.get("/health", responses={503: {"description": "Unhealthy or stopping; the answer says why."}})
    async def health() -> JSONResponse:
        """Is the server well? 200 when it is."""
        status = "stopping" if worker.is_stopping else "unhealthy" if worker.trouble else "ok"
        return JSONResponse({"status": status, "reason": worker.trouble}, 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=Response)
    async def figures() -> Response:
        """Counters and times, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    def answer(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
        async def page() -> Response:
            file = files("smallgpt.interfaces.http") / "page" / name
            if not file.is_file():
                raise HTTPException(404)
            return Response(file.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})

        return page

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, answer(name, kind), include_in_schema=False)


def _add_description(app: FastAPI) -> None:
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    for name, kind in SCHEMAS.items():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[name] = schema

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(description)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(as_page(description))


class Reply(Response):
    """Sends what comes for a ticket, and frees its streams when the client has left."""

    def __init__(self, ticket: Ticket, answer: Answer, worker: Worker, *, stream: bool, usage: bool) -> None:
        super().__init__()
        self._ticket, self._answer, self._worker = ticket, answer, worker
        self._stream, self._usage = stream, usage
        self._error: ApiError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The status is known with the first token, so that a refusal in the queue is one even for a stream."""
        work = asyncio.create_task(self._send_stream(send) if self._stream else self._send_whole(scope, receive, send))
        watch = asyncio.create_task(_until_left(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
            self._worker.leave(self._ticket)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self._answer.is_complete:
            for item in await self._next():
                self._answer.keep(item)
        await JSONResponse(self._answer.whole())(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        first = await self._next()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        parts = [event(chunk) for chunk in self._answer.beginning()]
        try:
            pieces = first
            while True:
                parts += [event(self._answer.chunk(piece)) for piece in pieces]
                if self._answer.is_complete:
                    break
                await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
                parts = []
                pieces = await self._next()
            parts += [event(self._answer.usage_chunk())] if self._usage else []
            parts.append(DONE)
        except ApiError as error:  # the status is sent already
            parts.append(event(error.body))
        await send({"type": "http.response.body", "body": b"".join(parts)})

    async def _next(self) -> list[Piece]:
        """All pieces that have come, at least one. Raises the ApiError that came instead, or after those before it."""
        events = self._ticket.events
        pieces: list[Piece] = []
        while self._error is None and (not pieces or not events.empty()):
            item = await events.get()
            if isinstance(item, ApiError):
                self._error = item
            else:
                pieces.append(item)
        if self._error is not None and not pieces:
            raise self._error
        return pieces


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
