"""What A1111's web UI API says there is: samplers, models, LoRAs, settings, and what a PNG was made of."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from .bodies import read_body
from .errors import ApiError
from .pictures import KEYWORD, picture_bytes, texts_of
from .shared import Gateway, Shared
from .webui_fields import Settings
from .webui_samplers import AUTOMATIC, samplers


class PictureWithText(BaseModel):
    """The body of `png-info`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str


router = APIRouter()


@router.get("/sdapi/v1/samplers")
async def named_samplers(gateway: Gateway) -> list[dict[str, Any]]:
    """Names of samplers; the contract's own are aliases."""
    pipeline = (await gateway.pipeline(None))[1]
    named = {name: [each.name for each in found] for name, found in samplers(pipeline).items()}
    return [{"name": name, "aliases": own, "options": {}} for name, own in (named | {pipeline.scheduler: []}).items()]


@router.get("/sdapi/v1/schedulers")
async def schedule_types(gateway: Gateway) -> list[dict[str, Any]]:
    """Schedule types."""
    labels = dict.fromkeys([AUTOMATIC, *(each.schedule for each in (await gateway.pipeline(None))[1].schedulers)])
    return [
        {
            "name": label.lower().replace(" ", "_"),
            "label": label,
            "aliases": None,
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for label in labels
    ]


@router.get("/sdapi/v1/sd-models")
async def sd_models(gateway: Gateway) -> list[dict[str, Any]]:
    """Pipelines."""
    nothing = {"hash": None, "sha256": None, "config": None}
    return [
        {"title": each, "model_name": each, "filename": each, **nothing} for each in await gateway.servers.pipelines()
    ]


@router.get("/sdapi/v1/loras")
async def loras(gateway: Gateway) -> list[dict[str, Any]]:
    """LoRAs of all pipelines."""
    names = {lora.name for pipeline in (await gateway.servers.pipelines()).values() for lora in pipeline.loras}
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in sorted(names)]


@router.get("/sdapi/v1/options")
async def options(gateway: Gateway) -> dict[str, Any]:
    """Settings, the same for all: a request has its own in `override_settings`."""
    return await _options(gateway)


@router.post("/sdapi/v1/options")
async def set_options(request: Request, gateway: Gateway) -> dict[str, Any]:
    """Settings are each request's own: here only those are taken that are so already."""
    given, now = (await read_body(request, Settings)).model_dump(exclude_unset=True), await _options(gateway)
    for name, value in given.items():
        if value != now[name]:
            raise ApiError(400, f"{name} is {now[name]!r} for all; allowed: override_settings of a request", param=name)
    return {}


@router.get("/sdapi/v1/scripts")
async def scripts() -> dict[str, list[str]]:
    """Of `alwayson_scripts`, those that are supported."""
    return {"txt2img": ["controlnet"], "img2img": []}


@router.post("/sdapi/v1/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """What a PNG says it was made of."""
    content = picture_bytes((await read_body(request, PictureWithText)).image, "image")
    texts = await asyncio.to_thread(texts_of, content)
    return {"info": texts.get(KEYWORD, ""), "items": texts, "parameters": {}}


@router.get("/controlnet/model_list")
async def controlnets(gateway: Gateway) -> dict[str, list[str]]:
    """ControlNets."""
    return {"model_list": [each.name for each in (await gateway.pipeline(None))[1].controlnets]}


@router.get("/controlnet/module_list")
async def preprocessors() -> dict[str, list[str]]:
    """There are none."""
    return {"module_list": ["none"]}


@router.get("/controlnet/version")
async def controlnet_version() -> dict[str, int]:
    """Of the extension whose units are read."""
    return {"version": 3}


async def _options(gateway: Shared) -> dict[str, Any]:
    return {**Settings().model_dump(), "sd_model_checkpoint": (await gateway.pipeline(None))[0]}
