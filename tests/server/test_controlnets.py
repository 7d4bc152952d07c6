"""ControlNets over the server: the pictures are those of diffusers' ControlNet pipelines, whoever shares the batch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from PIL import Image
from tritonclient.utils import InferenceServerException

from controls import Use, request
from wire import PROMPT

if TYPE_CHECKING:
    from conftest import TinyServer

TOLERANCE = 0.5
"""Mean absolute difference of pixels, in units of 1/255."""

PIPELINES = {"sdxl": "StableDiffusionXLControlNetPipeline", "sd15": "StableDiffusionControlNetPipeline"}


class Oracle:
    """diffusers' ControlNet pipeline."""

    def __init__(self, server: TinyServer) -> None:
        self._base = DiffusionPipeline.from_pretrained(server.checkpoint, dtype=torch.float32)
        self._class = getattr(diffusers, PIPELINES[server.model])
        names = ("edges", "depth", "pose")
        self._networks = {name: ControlNetModel.from_pretrained(server.checkpoint.parent / name) for name in names}

    def picture(self, *uses: Use, guidance_scale: float = 5.0, steps: int = 5, **options: Any) -> np.ndarray:
        """uint8 [H, W, 3]."""
        networks = [self._networks[use.name] for use in uses]
        pipeline = self._class.from_pipe(self._base, controlnet=networks if len(networks) > 1 else networks[0])
        pipeline.set_progress_bar_config(disable=True)
        lists: dict[str, list[Any]] = {
            "image": [Image.fromarray(use.image) for use in uses],
            "controlnet_conditioning_scale": [use.scale for use in uses],
            "control_guidance_start": [use.start for use in uses],
            "control_guidance_end": [use.end for use in uses],
        }
        given = {name: values if len(uses) > 1 else values[0] for name, values in lists.items()}
        picture = pipeline(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guess_mode=uses[0].guess_mode,
            generator=torch.Generator("cpu").manual_seed(7),
            **{"height": 64, "width": 64, **given, **options},
        ).images[0]
        return np.asarray(picture)


@pytest.fixture(scope="module")
def oracle(tiny: TinyServer) -> Oracle:
    return Oracle(tiny)


CASES: dict[str, tuple[Use, ...]] = {
    "one": (Use("edges"),),
    "weak": (Use("edges", scale=0.3),),
    "strong": (Use("depth", scale=2.0, seed=4),),
    "late": (Use("edges", start=0.4),),
    "early": (Use("edges", end=0.6),),
    "window": (Use("edges", start=0.3, end=0.7),),
    "two": (Use("edges", 0.8), Use("depth", 0.6, seed=1)),
    "three": (Use("edges", 0.4), Use("depth", 0.5, seed=1), Use("pose", 0.6, seed=2)),
    "windows": (Use("edges", 0.8, end=0.4), Use("depth", 0.6, start=0.5, seed=1)),
    "one twice": (Use("edges", 0.8), Use("edges", 0.6, seed=3)),
    "guessing": (Use("edges", guess_mode=True),),
    "two guessing": (Use("edges", 0.7, guess_mode=True), Use("depth", 0.6, guess_mode=True, seed=1)),
    "resized": (Use("edges", side=48),),
}


@pytest.mark.parametrize("uses", CASES.values(), ids=CASES.keys())
def test_pictures_are_those_of_diffusers(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    picture = request(tiny, *uses)
    assert picture.distance(oracle.picture(*uses)) <= TOLERANCE
    assert picture.distance(request(tiny)) > TOLERANCE
    assert [report["name"] for report in picture.info["controlnets"]] == [use.name for use in uses]


@pytest.mark.parametrize("uses", [CASES["one"], CASES["two"]], ids=["one", "two"])
def test_without_guidance(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    picture = request(tiny, *uses, GUIDANCE_SCALE=1.0)
    assert picture.distance(oracle.picture(*uses, guidance_scale=1.0)) <= TOLERANCE


def test_other_sizes(tiny: TinyServer, oracle: Oracle) -> None:
    picture = request(tiny, Use("edges"), HEIGHT=96, WIDTH=64)
    assert picture.distance(oracle.picture(Use("edges"), height=96, width=64)) <= TOLERANCE


def test_a_scale_of_zero_costs_nothing_and_changes_nothing(tiny: TinyServer) -> None:
    picture = request(tiny, Use("edges", scale=0.0))
    assert picture.distance(request(tiny)) == 0
    assert picture.info["controlnets"] == [{"name": "edges", "scale": 0.0, "calls": 0}]
    calls = [report["calls"] for report in request(tiny, *CASES["windows"], STEPS=4).info["controlnets"]]
    assert all(0 < count < 2 * request(tiny, STEPS=4).info["unet_evaluations"] for count in calls)


def test_requests_with_other_controlnets_share_steps(tiny: TinyServer) -> None:
    sets = [(), CASES["one"], CASES["two"], CASES["guessing"], CASES["window"], (Use("pose", seed=5),)]
    alone = [request(tiny, *uses, STEPS=12, SEED=seed) for seed, uses in enumerate(sets)]
    with ThreadPoolExecutor(len(sets)) as threads:
        running = [threads.submit(request, tiny, *uses, STEPS=12, SEED=seed) for seed, uses in enumerate(sets)]
        together = [one.result() for one in running]
    assert max(picture.info["largest_batch"] for picture in together) > 2
    for solo, shared in zip(alone, together, strict=True):
        assert shared.distance(solo) <= TOLERANCE


def test_with_loras(tiny: TinyServer) -> None:
    """Parity of each is tested by itself; both together are more than either."""
    loras = json.dumps([{"name": "attention", "scale": 1.0}])
    both = request(tiny, Use("edges"), LORAS=loras)
    assert both.distance(request(tiny, Use("edges"))) > TOLERANCE
    assert both.distance(request(tiny, LORAS=loras)) > TOLERANCE
    assert both.info["loras"][0]["patched_at_step"] == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"CONTROLNETS": '[{"name": "canny"}]'}, 'CONTROLNETS names "canny"; allowed: depth, edges, pose'),
        ({"CONTROLNETS": '[{"name": "edges"}]'}, "CONTROL_IMAGES holds 0 pictures; allowed: one per entry"),
        ({"CONTROLNETS": '[{"name": "edges", "start": 0.5, "end": 0.5}]'}, "allowed: start below end"),
        ({"CONTROLNETS": '[{"name": "edges", "scale": -1}]'}, r"CONTROLNETS\[0\].scale is -1"),
        ({"CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 3), np.uint8)}, "CONTROL_IMAGES holds 1 pictures"),
        ({"CONTROLNETS": "[" + ", ".join(['{"name": "edges"}'] * 9) + "]"}, "CONTROLNETS has 9 entries"),
    ],
)
def test_mistakes_are_named(tiny: TinyServer, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InferenceServerException, match=said):
        request(tiny, **fields)
