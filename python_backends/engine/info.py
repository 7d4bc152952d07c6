"""INFO: what a client is told of how its picture was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Denoising


def final_info(denoising: Denoising) -> dict[str, Any]:
    """INFO of a finished run; the denoiser and `vae_decoder` add their own times. Milliseconds, wall clock.

    `seed`, `steps`, `guidance_scale`, `height`, `width` and `scheduler` are what repeats the picture.
    """
    request, report = denoising.request, denoising.report
    editing = None if denoising.token_run is None else denoising.token_run.report(denoising.steps)
    return {
        **_start(denoising),
        "seed": request.seed,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        **({"guidance_rescale": request.guidance_rescale} if request.guidance_rescale else {}),
        "height": request.height,
        "width": request.width,
        "scheduler": denoising.scheduler,
        **({} if request.clip_skip is None else {"clip_skip": request.clip_skip}),
        **({"prompt_syntax": "weighted"} if request.max_chunks is not None else {}),
        "prompt_truncated": report.encoding.prompt_truncated,
        "loras": denoising.loras.report(),
        **({"lora_path": dict(report.lora_path)} if report.lora_path else {}),
        **({"lora_defaults": request.lora_defaults} if request.lora_defaults else {}),
        "controlnets": [
            {"name": use.name, "scale": use.scale, "calls": use.rows(len(denoising.halves), denoising.steps)}
            | ({"stale_calls": report.stale[position]} if use.stale else {})
            for position, use in enumerate(request.controlnets)
        ],
        "shards": sorted(report.shards),
        "unet_evaluations": denoising.steps,
        **({"precision": "fp8"} if report.fp8 else {}),
        **({} if editing is None else {"editing": editing}),
        "largest_batch": report.largest_batch,
        "timings_ms": {
            "text_encoder": round(report.encoding.ms, 3),
            **({} if request.edit is None else {"vae_encoder": round(report.picture.ms, 3)}),
        },
    }


def _start(denoising: Denoising) -> dict[str, Any]:
    """What the run began with."""
    edit = denoising.request.edit
    if edit is None:
        return {"kind": "text_to_image"}
    kept = denoising.request.steps - edit.skipped
    composite = {} if edit.mask is None else {"composite": edit.composite}
    return {"kind": edit.kind, "strength": edit.strength, "steps_kept": kept, **composite}
