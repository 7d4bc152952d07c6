"""The oracle: a picture equals that of diffusers' pipeline, alone and in company."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tritonclient.utils import InferenceServerException

from weighted_prompts import Words, arguments
from wire import drawn_together, generate

TOLERANCE = 1.0
"""Mean absolute difference of pixels, in units of 1/255."""

SDE = {"algorithm_type": "sde-dpmsolver++"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", SDE),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""Name in a request → diffusers' class and what it is told beside the checkpoint's configuration: of each kind of names
some, since unit tests compare all of them."""
ETA = {"tcd": 0.3}


@pytest.fixture(scope="session")
def pipeline(tiny: Any) -> DiffusionPipeline:
    """diffusers' pipeline of the served checkpoint."""
    loaded = DiffusionPipeline.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    if tiny.model == "sd15":  # for `clip_skip` diffusers 0.42 looks for it there; with this transformers it is not
        vars(loaded.text_encoder).setdefault("text_model", loaded.text_encoder)
    return loaded


def reference(pipeline: DiffusionPipeline, given: dict[str, Any] | None = None, **fields: Any) -> np.ndarray:
    """The picture that diffusers gives for a request's inputs; in the place of its texts, embeddings may be given."""
    names = {
        "PROMPT": "prompt",
        "NEGATIVE_PROMPT": "negative_prompt",
        "STEPS": "num_inference_steps",
        "GUIDANCE_SCALE": "guidance_scale",
        "HEIGHT": "height",
        "WIDTH": "width",
        "CLIP_SKIP": "clip_skip",
        "GUIDANCE_RESCALE": "guidance_rescale",
    }
    own = pipeline.scheduler
    name = fields.get("SCHEDULER")
    if name is not None:
        class_name, changes = SCHEDULERS[name]
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own.config, **changes)
    options: dict[str, Any] = {"eta": ETA.get(name, 0.0)} | {
        names[field]: value for field, value in fields.items() if field in names
    }
    if given is not None:
        options = {name: value for name, value in options.items() if "prompt" not in name} | given
    try:
        generator = torch.Generator("cpu").manual_seed(fields["SEED"])
        return np.asarray(pipeline(**options, generator=generator).images[0])
    finally:
        pipeline.scheduler = own


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_every_scheduler(tiny: Any, pipeline: DiffusionPipeline, scheduler: str | None, guidance_scale: float) -> None:
    fields = {"PROMPT": "a red circle", "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": guidance_scale}
    if scheduler is not None:
        fields["SCHEDULER"] = scheduler
    picture = generate(tiny, tiny.model, **fields)
    assert picture.distance(reference(pipeline, **fields)) <= TOLERANCE
    assert picture.info["scheduler"] == (scheduler or type(pipeline.scheduler).__name__)


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (8, 112)])
@pytest.mark.parametrize("negative", [None, "", "blurry photo"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_sizes_and_negative_prompts(
    tiny: Any, pipeline: DiffusionPipeline, size: tuple[int, int], negative: str | None, protocol: str
) -> None:
    fields = {"PROMPT": "a blue square", "SEED": 11, "STEPS": 4, "GUIDANCE_SCALE": 7.5}
    fields |= {"HEIGHT": size[0], "WIDTH": size[1]}
    if negative is not None:
        fields["NEGATIVE_PROMPT"] = negative
    picture = generate(tiny, tiny.model, protocol, **fields)
    assert picture.image.shape == (*size, 3)
    assert picture.distance(reference(pipeline, **fields)) <= TOLERANCE


def test_the_oracle_tells_schedulers_and_negative_prompts_apart(pipeline: DiffusionPipeline) -> None:
    """Otherwise equal pictures would prove nothing about them."""
    fields = {"PROMPT": "a red circle", "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 5.0}
    pictures = [reference(pipeline, **fields, SCHEDULER=name) for name in SCHEDULERS]
    if pipeline.config.get("force_zeros_for_empty_prompt"):
        pictures += [reference(pipeline, **fields), reference(pipeline, **fields, NEGATIVE_PROMPT="")]
        pictures.pop(0)  # the checkpoint's own scheduler is one of the others
    for first, second in itertools.combinations(pictures, 2):
        assert np.abs(first.astype(np.float64) - second).mean() > TOLERANCE


def test_the_oracle_would_notice(tiny: Any) -> None:
    """Prompt, negative prompt, guidance and seed each change these pictures by more than the tolerance."""
    base = {"PROMPT": "a red circle", "NEGATIVE_PROMPT": "blurry", "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 7.5}
    picture = generate(tiny, tiny.model, **base)
    for change in ({"PROMPT": "a cat"}, {"NEGATIVE_PROMPT": "a blue cat"}, {"GUIDANCE_SCALE": 1.0}, {"SEED": 8}):
        assert picture.distance(generate(tiny, tiny.model, **(base | change))) > TOLERANCE, change


def test_long_prompts_are_truncated_as_in_diffusers(tiny: Any, pipeline: DiffusionPipeline) -> None:
    fields = {"PROMPT": "a red circle above a blue square " * 20, "SEED": 3, "STEPS": 3, "GUIDANCE_SCALE": 5.0}
    picture = generate(tiny, tiny.model, **fields)
    assert picture.info["prompt_truncated"]
    assert picture.distance(reference(pipeline, **fields)) <= TOLERANCE


def test_prompts_of_many_chunks_in_company(tiny: Any, pipeline: DiffusionPipeline) -> None:
    """They batch with plain prompts in one running batch, and each gets its own picture."""
    long: Words = [("photo " * 70, 1.0)]
    chunks: list[list[Words]] = [[[("a red cat", 1.0)], *[long] * more] for more in (0, 1, 2)]
    if tiny.model == "sdxl":  # the states of a random SD 1.5 have no mean to restore
        chunks.append([[("a", 1.0), ("red", 1.4), ("circle", -0.5)], [("cat", 0.8)]])
    requests: list[dict[str, Any]] = []
    for index, parts in enumerate(chunks):
        text = " BREAK ".join("".join(f"({text}:{weight})" for text, weight in words) for words in parts)
        requests.append({"PROMPT": text, "PROMPT_SYNTAX": "weighted", "NEGATIVE_PROMPT": "blurry", "SEED": index})
    requests.append({"PROMPT": "a red cat", "NEGATIVE_PROMPT": "blurry", "SEED": 9})
    requests = [fields | {"STEPS": 12, "GUIDANCE_SCALE": 5.0} for fields in requests]
    pictures = drawn_together(lambda fields: generate(tiny, tiny.model, **fields), requests)
    for fields, picture, parts in zip(requests, pictures, chunks, strict=False):
        expected = reference(pipeline, arguments(pipeline, parts), **fields)
        assert picture.distance(expected) <= TOLERANCE, fields
        assert picture.info["prompt_syntax"] == "weighted"
        assert not picture.info["prompt_truncated"]
    assert pictures[-1].distance(reference(pipeline, **requests[-1])) <= TOLERANCE
    assert "prompt_syntax" not in pictures[-1].info
    shorter = reference(pipeline, arguments(pipeline, chunks[0]), **requests[1])
    assert pictures[1].distance(shorter) > TOLERANCE  # it would notice a chunk


@pytest.mark.parametrize("tiny", ["sd15"], indirect=True)
def test_embeddings_of_the_catalogue_are_words(tiny: Any) -> None:
    fields = {"PROMPT": "a toy on a red square", "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 7.5}
    picture = generate(tiny, tiny.model, **fields)
    taught = DiffusionPipeline.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    assert picture.distance(reference(taught, **fields)) > TOLERANCE
    taught.load_textual_inversion(load_file(tiny.loras / "toy.safetensors"), token="toy")
    assert picture.distance(reference(taught, **fields)) <= TOLERANCE
    assert generate(tiny, tiny.model, **fields, PROMPT_SYNTAX="weighted").distance(picture) <= TOLERANCE
    with pytest.raises(InferenceServerException, match=r'LORAS names "toy".*its name as a word of the prompt'):
        generate(tiny, tiny.model, **fields, LORAS='[{"name": "toy"}]')


@pytest.mark.parametrize("fields", [{"CLIP_SKIP": 1}, {"GUIDANCE_RESCALE": 0.75}])
def test_other_layers_and_rescaled_guidance(tiny: Any, pipeline: DiffusionPipeline, fields: dict[str, Any]) -> None:
    base = {"PROMPT": "a red circle", "NEGATIVE_PROMPT": "blurry", "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 40.0}
    picture = generate(tiny, tiny.model, **base, **fields)
    assert picture.distance(reference(pipeline, **base, **fields)) <= TOLERANCE
    assert picture.distance(reference(pipeline, **base)) > TOLERANCE
    assert {name: picture.info[name.lower()] for name in fields} == fields


def test_pictures_in_company_equal_diffusers(tiny: Any, pipeline: DiffusionPipeline) -> None:
    """Requests with other steps, schedulers, sizes, guidance in the same running batch change nothing."""
    requests: list[dict[str, Any]] = []
    for index, scheduler in enumerate(SCHEDULERS):
        # on random weights DDIM makes 2/255 of the last bits in which batched and single calls differ, at guidance 6
        for guidance_scale in (1.0, 1.5 if scheduler == "ddim" else 6.0):
            fields: dict[str, Any] = {"PROMPT": f"a cat {index}", "SEED": index, "STEPS": 12 + index}
            fields |= {
                "SCHEDULER": scheduler,
                "GUIDANCE_SCALE": guidance_scale,
                "HEIGHT": 64 + 32 * (index % 2),
                "WIDTH": 64,
            }
            if index % 3 == 0:
                fields["NEGATIVE_PROMPT"] = "blurry"
            requests.append(fields)
    pictures = drawn_together(lambda fields: generate(tiny, tiny.model, **fields), requests, least=3)
    for fields, picture in zip(requests, pictures, strict=True):
        assert picture.distance(reference(pipeline, **fields)) <= TOLERANCE, fields


def test_the_reported_seed_repeats_a_picture_without_one(tiny: Any) -> None:
    first = generate(tiny, tiny.model, PROMPT="a cat")
    assert first.distance(generate(tiny, tiny.model, PROMPT="a cat", SEED=first.info["seed"])) <= TOLERANCE
    assert first.distance(generate(tiny, tiny.model, PROMPT="a cat")) > TOLERANCE
