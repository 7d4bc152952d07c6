"""OpenAI's images API: `/v1/images/generations` and `/v1/models`."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ..client.pipelines import PipelineDescription
from ..client.result import GenerationResult, Progress
from .bodies import read_body
from .errors import ApiError
from .forms import read_form
from .openai_answers import (
    EDIT,
    GENERATION,
    completed_event,
    error_event,
    partial_event,
    pictures_answer,
    progress_event,
)
from .openai_edits import ImageEdit
from .openai_fields import ImageGeneration
from .runs import numbered, while_asked_for
from .shared import Gateway, Shared
from .streams import EventStream, Happening

OWNER = "swiftdiffusion"


router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(gateway: Gateway) -> dict[str, Any]:
    """Pipelines, and their LoRAs as `PIPELINE:LORA`."""
    return {"object": "list", "data": _cards(await gateway.servers.pipelines())}


@router.get("/models/{name:path}")
async def model(name: str, gateway: Gateway) -> dict[str, Any]:
    """One of them."""
    for card in _cards(await gateway.servers.pipelines()):
        if card["id"] == name:
            return card
    raise ApiError(404, f"no model is called {name[:128]!r}", param="model", code="model_not_found")


@router.post("/images/generations")
async def generations(request: Request, gateway: Gateway) -> Response:
    """Pictures of a prompt."""
    return await _pictures(request, gateway, await read_body(request, ImageGeneration))


@router.post("/images/edits")
async def edits(request: Request, gateway: Gateway) -> Response:
    """Pictures of a prompt that begin with one."""
    return await _pictures(request, gateway, await read_form(request, ImageEdit))


async def _pictures(request: Request, gateway: Shared, asked: ImageGeneration) -> Response:
    name, pipeline = await gateway.pipeline(asked.pipeline)
    first = await asked.request(pipeline, gateway.settings.max_pixels, request.state.request_id)
    asked = asked.without_pictures()
    begun = gateway.runs.begin(name, numbered(first, asked.n), request.state.caller, streamed=asked.stream)
    if asked.stream:
        size = f"{first.width or pipeline.width}x{first.height or pipeline.height}"
        return EventStream(begun[0], _Telling(asked, size), request.url.path)
    async with while_asked_for(begun, request.receive):
        results = await asyncio.gather(*(run.result() for run in begun))
    urls = _urls(request, gateway, results) if asked.response_format == "url" else None
    return JSONResponse(pictures_answer(results, urls, asked.masked_by))


@router.get("/images/files/{name}")
async def file(name: str, expires: int, signature: str, gateway: Gateway) -> Response:
    """A picture that was asked for by URL."""
    kept = gateway.links.get(name, expires, signature)
    return Response(kept.content, media_type=kept.media_type, headers={"cache-control": "private, immutable"})


def _urls(request: Request, gateway: Shared, results: Sequence[GenerationResult]) -> list[str]:
    base = (gateway.settings.public_url or str(request.base_url)).rstrip("/")
    kept = (gateway.links.put(result.encoded or b"", result.info.output_format or "png") for result in results)
    return [f"{base}/v1/images/files/{each}" for each in kept]


class _Telling:
    """What a stream tells of a run."""

    def __init__(self, asked: ImageGeneration, size: str) -> None:
        self._asked, self._size, self._partial = asked, size, 0
        self._of = EDIT if isinstance(asked, ImageEdit) else GENERATION

    def __call__(self, happened: Happening) -> Iterator[bytes]:
        match happened:
            case None:
                yield b": still at it\n\n"
            case GenerationResult():
                yield completed_event(self._of, happened, self._asked.masked_by)
            case ApiError():
                yield error_event(happened)
            case progress:
                if progress.preview is not None and self._is_partial(progress):
                    yield partial_event(
                        self._of, progress.preview, self._partial, self._asked.output_format, self._size
                    )
                    self._partial += 1
                if self._asked.progress:
                    yield progress_event(
                        self._of, progress, self._asked.output_format, shows=self._asked.preview_every > 0
                    )

    def _is_partial(self, progress: Progress) -> bool:
        """Whether it is far enough on to have the next partial image."""
        between = max(1, progress.of // (self._asked.partial_images + 1))
        return self._partial < self._asked.partial_images and progress.step >= between * (self._partial + 1)


def _cards(pipelines: dict[str, PipelineDescription]) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = []
    for name, pipeline in pipelines.items():
        described = pipeline.model_dump(mode="json")
        cards.append({**_card(name), "pipeline": described})
        cards += [{**_card(f"{name}:{lora.name}"), "root": name} for lora in pipeline.loras]
    return cards


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}
