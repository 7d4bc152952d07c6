"""The text that other tools read from a PNG, as A1111's web UI writes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swiftdiffusion.python_backends.request.completed import Arrival, CompletedRequest, ControlNetUse, LoraUse
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS
from swiftdiffusion.python_backends.request.webui_text import webui_text

REQUEST = CompletedRequest("run", "a red circle", None, 7, 20, 5.0, 96, 64, "euler")
KEY = "0" * 64


def lines(request: CompletedRequest, scheduler: str = "euler") -> list[str]:
    return webui_text(request, {"scheduler": scheduler}).split("\n")


def values(request: CompletedRequest, scheduler: str = "euler") -> dict[str, str]:
    """Of the last line, without those in quotes."""
    return dict(entry.split(": ") for entry in lines(request, scheduler)[-1].split(", ") if '"' not in entry)


def test_the_least_that_there_is_to_say() -> None:
    assert lines(REQUEST) == [
        "a red circle",
        "Steps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 7, Size: 64x96",
    ]


def test_everything_has_its_place() -> None:
    request = replace(
        REQUEST,
        prompt="a (red:1.2) circle,\nBREAK on white",
        negative_prompt="blurry, ugly",
        guidance_scale=7.25,
        scheduler="dpmpp_2m_sde_karras",
        loras=(LoraUse("papercut", 0.8, 0), LoraUse("ink", -1.0, 4)),
        controlnets=(
            ControlNetUse("edges", (KEY,), 0.75, 0.0, 0.6, guess_mode=False),
            ControlNetUse("depth", (KEY,), 1.0, 0.25, 1.0, guess_mode=True),
        ),
        clip_skip=1,
        guidance_rescale=0.7,
        arrival=Arrival("sdxl", 0.0),
    )
    edges = "Module: none, Model: edges, Weight: 0.75, Guidance Start: 0, Guidance End: 0.6, Control Mode: Balanced"
    depth = (
        "Module: none, Model: depth, Weight: 1, Guidance Start: 0.25, Guidance End: 1, "
        "Control Mode: ControlNet is more important"
    )
    assert lines(request, "dpmpp_2m_sde_karras") == [
        "a (red:1.2) circle,",
        "BREAK on white <lora:papercut:0.8> <lora:ink:-1>",
        "Negative prompt: blurry, ugly",
        "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7.25, Seed: 7, Size: 64x96, "
        f'Model: sdxl, Clip skip: 2, CFG Rescale: 0.7, ControlNet 0: "{edges}", ControlNet 1: "{depth}"',
    ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_has_the_web_uis_name(name: str) -> None:
    told = values(replace(REQUEST, scheduler=name), name)
    assert (told["Sampler"], told["Schedule type"]) == (SCHEDULERS[name].sampler, SCHEDULERS[name].schedule)
    assert told["Schedule type"] == (
        "Karras"
        if "karras" in name
        else "SGM Uniform"
        if "trailing" in name
        else "Uniform"
        if "dpmpp" in name
        else "Automatic"
    )


def test_a_checkpoints_own_scheduler_is_told_by_its_class() -> None:
    told = values(replace(REQUEST, scheduler=None), "PNDMScheduler")
    assert told["Sampler"] == "PNDMScheduler"
    assert "Schedule type" not in told


@pytest.mark.parametrize(("skipped", "told"), [(None, None), (0, "1"), (1, "2"), (11, "12")])
def test_clip_skip_counts_the_last_layer_too(skipped: int | None, told: str | None) -> None:
    assert values(replace(REQUEST, clip_skip=skipped)).get("Clip skip") == told


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert len(lines(replace(REQUEST, negative_prompt=""))) == 2
