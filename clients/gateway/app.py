"""The application: routes behind the door, and what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ..client.errors import SwiftDiffusionError
from . import openai_routes, webui_lists, webui_routes
from .door import App, Door
from .errors import ApiError, api_error
from .keys import Keys
from .origins import Origins
from .settings import GatewaySettings
from .shared import Shared

PAGE = Path(__file__).parent / "page"


def gateway(settings: GatewaySettings, shared: Shared | None = None) -> App:
    """The whole application, as an ASGI server runs it.

    Args:
        settings: Of it.
        shared: What its routes share, for who wants a part in it.

    Raises:
        KeysError: If the file of keys cannot be used.
    """
    keys = Keys(settings.keys_file)
    origins = Origins(settings.origins, settings.public_url, settings.keys_file is not None)
    shared = shared or Shared.of(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await shared.runs.close()
        await shared.servers.close()

    app = FastAPI(
        title="SwiftDiffusion gateway", openapi_url="/openapi.json", docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.shared = shared
    for router in (openai_routes.router, webui_routes.router, webui_lists.router):
        app.include_router(router)

    @app.get("/health")
    async def health() -> Response:
        """Whether a server behind this gateway takes requests."""
        ready = await shared.servers.ready()
        return JSONResponse({"ready": ready > 0, "servers_ready": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        """For Prometheus."""
        return Response(shared.metrics.text(), media_type="text/plain; version=0.0.4")

    if settings.page:
        app.mount("/page", StaticFiles(directory=PAGE), name="page")

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    _handle_errors(app)
    door = Door(
        app,
        keys,
        origins,
        shared.metrics,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
        routes=[str(getattr(route, "path", "")) for route in app.routes],
    )
    if not settings.origins:
        return door
    return CORSMiddleware(
        door,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _handle_errors(app: FastAPI) -> None:
    """Whatever ends a request is told in the shape of the API that was called."""

    @app.exception_handler(ApiError)
    @app.exception_handler(SwiftDiffusionError)
    async def of_ours(request: Request, error: Exception) -> Response:
        return api_error(error).response(request.url.path)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return api_error(error).response(request.url.path)  # the door logs it

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = {404: "there is no such route", 405: "the route takes another method"}.get(error.status_code)
        return ApiError(error.status_code, message or str(error.detail)).response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return ApiError(400, f"{first['loc'][-1]}: {first['msg']}", param=str(first["loc"][-1])).response(
            request.url.path
        )
