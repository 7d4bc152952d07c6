"""ControlNets over the server: the pictures are those of diffusers' ControlNet pipelines, whoever shares the batch."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from tritonclient.utils import InferenceServerException

import lora_files
from controls import Use, pipeline_options, request
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from weighted_prompts import Words, arguments
from wire import PROMPT, drawn_together, metrics

if TYPE_CHECKING:
    from conftest import TinyServer

TOLERANCE = 0.5
"""Mean absolute difference of pixels, in units of 1/255."""

PIPELINES = {"sdxl": "StableDiffusionXLControlNetPipeline", "sd15": "StableDiffusionControlNetPipeline"}


class Oracle:
    """diffusers' ControlNet pipelines."""

    def __init__(self, server: TinyServer) -> None:
        self._base = DiffusionPipeline.from_pretrained(server.checkpoint, dtype=torch.float32)
        self._deltas = lora_files.three(BaseModules.of(Checkpoint(server.checkpoint)).shapes)["attention"].deltas
        self._class = getattr(diffusers, PIPELINES[server.model])
        self._networks = {
            name: ControlNetModel.from_pretrained(server.directory / name)
            for name in ("edges", "depth", "pose", "shuffle", "canny")
            if (server.directory / name).exists()
        }
        if server.model == "sdxl":
            self._networks["union"] = ControlNetUnionModel.from_pretrained(server.directory / "union")

    def picture(
        self,
        *uses: Use,
        guidance_scale: float = 5.0,
        steps: int = 5,
        chunks: list[Words] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """uint8 [H, W, 3]; for chunks of a prompt beside the negative one `blurry`."""
        networks = [self._networks[use.name] for use in uses]
        is_union = bool(uses[0].modes)
        pipelines = StableDiffusionXLControlNetUnionPipeline if is_union else self._class
        pipeline = pipelines.from_pipe(self._base, controlnet=networks if len(networks) > 1 else networks[0])
        pipeline.set_progress_bar_config(disable=True)
        given = pipeline_options(*uses, pictures="control_image" if is_union else "image")
        if chunks is not None:
            options |= {"prompt": None, **arguments(self._base, chunks)}
        picture = pipeline(
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guess_mode=uses[0].guess_mode,
            generator=torch.Generator("cpu").manual_seed(7),
            **{"prompt": PROMPT, "height": 64, "width": 64, **given, **options},
        ).images[0]
        return np.asarray(picture)

    def picture_with_lora(self, *uses: Use) -> np.ndarray:
        """With the LoRA `attention` added to the weights."""
        patched = [
            (adaptable_weights(getattr(self._base, part))[name], delta) for (part, name), delta in self._deltas.items()
        ]
        originals = [weight.detach().clone() for weight, _ in patched]
        with torch.no_grad():
            for weight, delta in patched:
                weight += delta.reshape(weight.shape)
            picture = self.picture(*uses)
            for (weight, _), original in zip(patched, originals, strict=True):
                weight.copy_(original)
        return picture


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
    assert [report["name"] for report in picture.info["controlnets"]] == [tiny.controlnet(use.name) for use in uses]


@pytest.mark.parametrize("uses", [CASES["one"], CASES["two"]], ids=["one", "two"])
def test_without_guidance(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    picture = request(tiny, *uses, GUIDANCE_SCALE=1.0)
    assert picture.distance(oracle.picture(*uses, guidance_scale=1.0)) <= TOLERANCE


def test_sizes_that_the_unet_halves_with_a_rest(tiny: TinyServer, oracle: Oracle) -> None:
    picture = request(tiny, Use("edges"), HEIGHT=40, WIDTH=72)
    assert picture.distance(oracle.picture(Use("edges"), height=40, width=72)) <= TOLERANCE


@pytest.mark.parametrize("uses", [CASES["two"], CASES["guessing"]], ids=["two", "guessing"])
def test_prompts_of_two_chunks(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    long = {"PROMPT": "red " * 75 + "cat", "NEGATIVE_PROMPT": "blurry", "PROMPT_SYNTAX": "weighted"}
    expected = oracle.picture(*uses, chunks=[[("red " * 75, 1.0)], [("cat", 1.0)]])
    assert request(tiny, *uses, **long).distance(expected) <= TOLERANCE


def test_a_scale_of_zero_costs_nothing_and_changes_nothing(tiny: TinyServer) -> None:
    picture = request(tiny, Use("edges", scale=0.0), GUIDANCE_SCALE=1.0)
    assert picture.distance(request(tiny, GUIDANCE_SCALE=1.0)) == 0
    assert picture.info["controlnets"] == [{"name": tiny.controlnet("edges"), "scale": 0.0, "calls": 0}]
    calls = [report["calls"] for report in request(tiny, *CASES["windows"], STEPS=4).info["controlnets"]]
    assert all(0 < count < 2 * request(tiny, STEPS=4).info["unet_evaluations"] for count in calls)


def test_requests_with_other_controlnets_share_steps(tiny: TinyServer) -> None:
    sets = [(), CASES["one"], CASES["two"], CASES["guessing"], CASES["window"], (Use("pose", seed=5),)]
    alone = [request(tiny, *uses, STEPS=12, SEED=seed) for seed, uses in enumerate(sets)]
    together = drawn_together(lambda item: request(tiny, *item[1], STEPS=12, SEED=item[0]), list(enumerate(sets)))
    for solo, shared in zip(alone, together, strict=True):
        assert shared.distance(solo) <= TOLERANCE


@pytest.mark.parametrize("uses", [CASES["one"], CASES["two"]], ids=["one", "two"])
def test_with_loras(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    picture = request(tiny, *uses, LORAS=json.dumps([{"name": "attention", "scale": 1.0}]))
    assert picture.distance(oracle.picture_with_lora(*uses)) <= TOLERANCE
    assert picture.distance(request(tiny, *uses)) > TOLERANCE
    assert picture.info["loras"][0]["patched_at_step"] == 0


UNIONS: dict[str, tuple[float, tuple[Use, ...]]] = {
    "one mode": (5.0, (Use("union", 0.7, modes=(2,)),)),
    "two modes": (5.0, (Use("union", 0.7, modes=(0, 3)),)),
    "guessing": (1.0, (Use("union", 0.7, modes=(1,), guess_mode=True),)),
    "two modes guessing": (1.0, (Use("union", 0.7, modes=(1, 2), guess_mode=True),)),
    "window": (5.0, (Use("union", modes=(1,), end=0.5),)),
    "two modes, window": (5.0, (Use("union", 0.7, modes=(0, 3), end=0.5),)),
    "two modes, scale 0": (5.0, (Use("union", 0.0, modes=(0, 3)),)),
    "twice": (5.0, (Use("union", 0.5, modes=(1,)), Use("union", 0.4, modes=(3,), seed=5))),
}
"""Guidance and uses; diffusers 0.42 cannot guess with a union and guidance at once."""


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.parametrize(("guidance_scale", "uses"), UNIONS.values(), ids=UNIONS.keys())
def test_unions(tiny: TinyServer, oracle: Oracle, guidance_scale: float, uses: tuple[Use, ...]) -> None:
    picture = request(tiny, *uses, GUIDANCE_SCALE=guidance_scale)
    assert picture.distance(oracle.picture(*uses, guidance_scale=guidance_scale)) <= TOLERANCE
    assert picture.distance(request(tiny, GUIDANCE_SCALE=guidance_scale)) > TOLERANCE


@pytest.mark.parametrize("tiny", ["sd15"], indirect=True)
def test_one_that_pools_its_residuals(tiny: TinyServer, oracle: Oracle) -> None:
    picture = request(tiny, Use("shuffle", 0.5))
    assert picture.distance(oracle.picture(Use("shuffle", 0.5))) <= TOLERANCE
    assert picture.info["controlnets"][0]["calls"] == picture.info["unet_evaluations"]


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.parametrize("uses", [(Use("canny"),), (Use("edges", 0.8), Use("canny", 0.6, seed=1))], ids=["one", "two"])
def test_on_another_server(tiny: TinyServer, oracle: Oracle, uses: tuple[Use, ...]) -> None:
    for guidance_scale in (5.0, 1.0):
        expected = oracle.picture(*uses, guidance_scale=guidance_scale)
        assert request(tiny, *uses, GUIDANCE_SCALE=guidance_scale).distance(expected) <= TOLERANCE


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.parametrize("name", ["edges", "canny"])
def test_stale_residuals_are_those_of_the_step_before(tiny: TinyServer, oracle: Oracle, name: str) -> None:
    """Of two steps, the second takes what the first had; a window of one step has nothing to take.

    Nor has a half that goes to another shard, and maybe back.
    """
    fresh, stale = (request(tiny, Use(name, 0.5, stale=stale), STEPS=8) for stale in (False, True))
    assert stale.distance(fresh) > 0.01
    assert 2 * 7 - 2 <= stale.info["controlnets"][0]["stale_calls"] <= 2 * 7
    one_half = request(tiny, Use(name, 0.5, stale=True), STEPS=8, GUIDANCE_SCALE=1.0)
    assert one_half.info["controlnets"][0]["stale_calls"] == 7
    assert "stale_calls" not in fresh.info["controlnets"][0]
    once = [request(tiny, Use(name, end=0.125, stale=stale), STEPS=8) for stale in (False, True)]
    assert once[0].distance(once[1]) < 0.01


def test_bytes_between_models_are_counted(tiny: TinyServer) -> None:
    """Of a step: latents, timestep and conditioning to another shard and the ControlNet; what they give back."""
    before = transferred(tiny)
    picture = request(tiny, Use("edges"), STEPS=60)
    after = transferred(tiny)
    rows = 2 * picture.info["unet_evaluations"]
    width, pooled = {"sdxl": (40, 24 + 6), "sd15": (16, 0)}[tiny.model]
    given = 4 * (4 * 16 * 16 + 1 + 77 * width + pooled)
    residuals = {
        "sdxl": [(16, 16), (16, 16), (16, 8), (32, 8), (32, 4), (32, 4), (32, 4)],
        "sd15": [(16, 16), (16, 16), (16, 8), (32, 8), (32, 8)],
    }[tiny.model]
    moved = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    shards = {
        direction: sum(value for key, value in moved.items() if "shard" in key[0] and key[1] == direction)
        for direction in ("to", "from")
    }
    edges = f"controlnet_{tiny.controlnet('edges')}"
    assert moved[edges, "to"] == rows * given
    assert 0 < shards["to"] <= rows // 2 * given  # one half of guidance, while another shard is idle
    assert moved[edges, "from"] == rows * 4 * sum(width * side**2 for width, side in residuals)
    assert shards["from"] == shards["to"] // given * 4 * 4 * 16 * 16


def transferred(server: TinyServer) -> dict[tuple[str, str], float]:
    """(model, direction) → bytes."""
    of_name = {name: value for name, value in metrics(server).items() if "transferred_bytes_total" in name}
    labelled = [(dict(re.findall(r'(\w+)="([\w-]+)"', name)), value) for name, value in of_name.items()]
    return {(labels["model"], labels["direction"]): value for labels, value in labelled}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"CONTROLNETS": '[{"name": "scribble"}]'}, 'CONTROLNETS names "scribble"; allowed: .*DEPTH, EDGES, POSE'),
        ({"CONTROLNETS": '[{"name": "EDGES"}]'}, "CONTROL_IMAGES holds 0 pictures; allowed: one per entry"),
        ({"CONTROLNETS": '[{"name": "EDGES", "start": 0.5, "end": 0.5}]'}, "allowed: start below end"),
        ({"CONTROLNETS": '[{"name": "EDGES", "scale": -1}]'}, r"CONTROLNETS\[0\].scale is -1"),
        ({"CONTROLNETS": '[{"name": "EDGES", "control_mode": 1}]'}, "allowed: none, it is no union"),
        ({"CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 3), np.uint8)}, "CONTROL_IMAGES holds 1 pictures"),
        ({"CONTROLNETS": "[" + ", ".join(['{"name": "EDGES"}'] * 9) + "]"}, "CONTROLNETS has 9 entries"),
    ],
)
def test_mistakes_are_named(tiny: TinyServer, fields: dict[str, Any], said: str) -> None:
    for name in ("depth", "edges", "pose"):  # as the family calls them
        said = said.replace(name.upper(), tiny.controlnet(name))
        fields = {
            field: given.replace(name.upper(), tiny.controlnet(name)) if isinstance(given, str) else given
            for field, given in fields.items()
        }
    with pytest.raises(InferenceServerException, match=said):
        request(tiny, **fields)


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.parametrize("mode", ["4", "-1", "[]", "[1, 1]", "[0, 4]", '"canny"'])
def test_mistakes_about_control_modes_are_named(tiny: TinyServer, mode: str) -> None:
    with pytest.raises(InferenceServerException, match=r"control_mode"):
        request(tiny, CONTROLNETS=f'[{{"name": "union", "control_mode": {mode}}}]')
    with pytest.raises(InferenceServerException, match=r"CONTROL_IMAGES holds 0 pictures.*control mode: 2"):
        request(tiny, CONTROLNETS='[{"name": "union", "control_mode": [0, 1]}]')
