"""A1111's web UI API, `/sdapi/v1`, as far as its clients need it for pictures of prompts."""

import asyncio
import base64
import json
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request

from ..client.result import GenerationResult
from .bodies import read_body
from .errors import ApiError
from .pictures import KEYWORD, texts_of
from .runs import Run, numbered, while_asked_for
from .shared import Gateway, Shared
from .webui_edits import ImageToImage
from .webui_fields import TextToImage
from .webui_jobs import IDLE, Job

router = APIRouter(prefix="/sdapi/v1")


@router.post("/txt2img")
async def txt2img(request: Request, gateway: Gateway) -> dict[str, Any]:
    """Pictures of a prompt."""
    return await _pictures(request, gateway, await read_body(request, TextToImage))


@router.post("/img2img")
async def img2img(request: Request, gateway: Gateway) -> dict[str, Any]:
    """Pictures of a prompt that begin with one."""
    return await _pictures(request, gateway, await read_body(request, ImageToImage))


async def _pictures(request: Request, gateway: Shared, asked: TextToImage) -> dict[str, Any]:
    name, pipeline = await gateway.pipeline(asked.override_settings.sd_model_checkpoint)
    caller = request.state.caller
    one = await asked.request(pipeline, gateway.settings.max_pixels, request.state.request_id)
    begun = gateway.runs.begin(name, numbered(one, asked.count), caller, streamed=True)
    job = Job(caller, asked.force_task_id, begun)
    with gateway.jobs.begun(job):
        async with while_asked_for(begun, request.receive):
            with suppress(ApiError):
                await asyncio.gather(*(run.result() for run in begun))
            if job.interrupted:  # else what has failed ends the others
                await asyncio.gather(*(run.task for run in begun if run.task), return_exceptions=True)
    return await asyncio.to_thread(_answer, asked, name, job)


@router.get("/progress")
async def progress(
    request: Request, gateway: Gateway, skip_current_image: bool = False, id_task: str | None = None
) -> dict[str, Any]:
    """How far the caller's oldest pictures are, or those that it names."""
    found = gateway.jobs.of(request.state.caller, id_task)
    return found[0].state(not skip_current_image) if found else IDLE


@router.post("/interrupt")
async def interrupt(request: Request, gateway: Gateway, id_task: str | None = None) -> dict[str, Any]:
    """Ends the caller's pictures."""
    gateway.jobs.interrupt(request.state.caller, id_task)
    return {}


def _answer(asked: TextToImage, model: str, job: Job) -> dict[str, Any]:
    """What A1111 answers; an interrupted run's picture is its last preview, as there."""
    failures = [run.end for run in job.runs if isinstance(run.end, ApiError)]
    if failures and not job.interrupted:
        raise failures[0]
    made: list[tuple[Run, bytes]] = []
    for run in job.runs:
        if isinstance(run.end, GenerationResult):
            made.append((run, run.end.encoded or b""))
        elif not job.interrupted:
            raise run.end or ApiError(499, "the picture was cancelled", "cancelled", code="cancelled")
        elif run.preview is not None:
            made.append((run, run.preview))
    first = job.runs[0].request
    infos = [run.end.info for run, _ in made if isinstance(run.end, GenerationResult)]
    seeds = [run.request.seed for run in job.runs]
    info = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(job.runs),
        "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": [asked.negative_prompt] * len(job.runs),
        "seed": first.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(job.runs),
        "subseed_strength": 0,
        "width": infos[0].width if infos else first.width,
        "height": infos[0].height if infos else first.height,
        "sampler_name": asked.sampler_name or asked.sampler_index or (infos[0].scheduler if infos else None),
        "cfg_scale": infos[0].guidance_scale if infos else first.guidance_scale,
        "steps": infos[0].steps if infos else first.steps,
        "batch_size": asked.batch_size,
        "sd_model_name": model,
        "clip_skip": asked.override_settings.CLIP_stop_at_last_layers,
        "infotexts": [texts_of(content).get(KEYWORD, "") for _, content in made],
        "index_of_first_image": 0,
        "interrupted": job.interrupted,
    }
    files = [asked.finished(content) for _, content in made] if asked.send_images else []
    return {
        "images": [base64.b64encode(file).decode("ascii") for file in files],
        "parameters": asked.echo,
        "info": json.dumps(info),
    }
