"""Edits over the server: the pictures are those of diffusers' image-to-image and inpainting pipelines."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient.utils import InferenceServerException

import lora_files
from controls import Use, pipeline_options
from edits import TOLERANCE, box, diffused, oracle, patched, picture
from shard_roles import roles
from stages import Stages
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.shared_memory.host_cache import host_cache_directory
from swiftdiffusion.python_backends.shared_memory.leased_files import LeasedFiles
from wire import Picture, Stream, drawn_together, generate, metrics, post, stub_of

if TYPE_CHECKING:
    from conftest import TinyServer

INIT, MASK = picture(64, 64), box(64, 64, 13, 10, 45, 50)
FIELDS: dict[str, Any] = {
    "PROMPT": "a cat",
    "NEGATIVE_PROMPT": "blurry",
    "SEED": 3,
    "STEPS": 10,
    "GUIDANCE_SCALE": 5.0,
    "STRENGTH": 0.7,
    "INIT_IMAGE": INIT,
}


CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "masked": {"MASK_IMAGE": MASK},
    "weak": {"STRENGTH": 0.3},
    "strong": {"MASK_IMAGE": MASK, "STRENGTH": 1.0},
    "ancestral": {"MASK_IMAGE": MASK, "SCHEDULER": "euler_a"},
    "multistep": {"MASK_IMAGE": MASK, "SCHEDULER": "dpmpp_2m", "STRENGTH": 0.9999},
    "few steps": {"SCHEDULER": "lcm", "GUIDANCE_SCALE": 1.0},
    "uneven": {"INIT_IMAGE": picture(56, 72, 1), "MASK_IMAGE": box(56, 72, 3, 5, 50, 31)},
    "mask of another size": {"MASK_IMAGE": box(100, 90, 20, 30, 60, 80), "HEIGHT": 64, "WIDTH": 64},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_pictures_are_those_of_diffusers(tiny: TinyServer, case: dict[str, Any]) -> None:
    fields = FIELDS | case
    made = generate(tiny, tiny.model, **fields)
    assert made.distance(diffused(tiny.checkpoint, **fields)) <= TOLERANCE
    kept = int(fields["STEPS"] * fields["STRENGTH"])
    assert (made.info["strength"], made.info["steps_kept"]) == (fields["STRENGTH"], kept)
    assert made.info["kind"] == ("inpaint" if "MASK_IMAGE" in case else "image_to_image")
    pndm = tiny.model == "sd15" and "SCHEDULER" not in case  # its own, which evaluates one step twice
    assert made.info["unet_evaluations"] == kept + pndm


def test_in_company_of_others(tiny: TinyServer) -> None:
    plain = {name: value for name, value in FIELDS.items() if name not in ("INIT_IMAGE", "STRENGTH")}
    requests = [*(FIELDS | case for case in CASES.values()), *(plain | {"SEED": seed} for seed in range(4))]
    alone = [generate(tiny, tiny.model, **fields) for fields in requests]
    together = drawn_together(lambda fields: generate(tiny, tiny.model, **fields), requests)
    for made, wanted in zip(together, alone, strict=True):
        assert made.distance(wanted) <= TOLERANCE
    assert {made.info["kind"] for made in together[-4:]} == {"text_to_image"}


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
def test_with_a_lora_and_a_controlnet(tiny: TinyServer) -> None:
    from diffusers import ControlNetModel, StableDiffusionXLControlNetInpaintPipeline

    base = oracle(tiny.checkpoint, None, True)
    network = ControlNetModel.from_pretrained(tiny.directory / "edges")
    pipeline = StableDiffusionXLControlNetInpaintPipeline.from_pipe(base, controlnet=network)
    pipeline.set_progress_bar_config(disable=True)
    deltas = lora_files.three(BaseModules.of(Checkpoint(tiny.checkpoint)).shapes)["attention"].deltas
    control = picture(64, 64, 9)
    controls = {"controlnet_conditioning_scale": 0.8, "control_guidance_start": 0.2, "control_guidance_end": 0.8}
    fields = FIELDS | {"MASK_IMAGE": MASK, "STRENGTH": 0.9}
    options = controls | {"control_image": Image.fromarray(control[0])}
    with torch.no_grad(), patched(base, deltas):
        wanted = diffused(tiny.checkpoint, pipeline, **fields, options=options)
    entry = {"name": "edges", "scale": 0.8, "start": 0.2, "end": 0.8}
    more = {"CONTROLNETS": json.dumps([entry]), "CONTROL_IMAGES": control[None]}
    made = generate(tiny, tiny.model, **fields, **more, LORAS='[{"name": "attention"}]', LORA_BOUND=0)
    assert made.distance(wanted) <= TOLERANCE
    assert made.distance(generate(tiny, tiny.model, **fields)) > TOLERANCE
    assert made.info["loras"][0]["patched_at_step"] == 0
    windows = [step for step in range(9) if step / 9 >= 0.2 and (step + 1) / 9 <= 0.8]
    assert made.info["controlnets"][0]["calls"] == 2 * len(windows)


UNIONS: dict[str, tuple[Use, ...]] = {
    "one mode": (Use("union", 0.7, modes=(2,)),),
    "two modes": (Use("union", 0.7, modes=(0, 3)),),
    "window": (Use("union", modes=(1,), start=0.2, end=0.7),),
    "twice": (Use("union", 0.5, modes=(1,)), Use("union", 0.4, modes=(3,), seed=5)),
}


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.parametrize("masked", [{}, {"MASK_IMAGE": MASK}], ids=["whole", "masked"])
@pytest.mark.parametrize("uses", UNIONS.values(), ids=UNIONS.keys())
def test_with_a_union(tiny: TinyServer, uses: tuple[Use, ...], masked: dict[str, Any]) -> None:
    import diffusers

    kind = getattr(diffusers, f"StableDiffusionXLControlNetUnion{'Inpaint' if masked else 'Img2Img'}Pipeline")
    network = diffusers.ControlNetUnionModel.from_pretrained(tiny.directory / "union")
    base = oracle(tiny.checkpoint, None, bool(masked))
    pipeline = kind.from_pipe(base, controlnet=network if len(uses) == 1 else [network] * len(uses))
    pipeline.set_progress_bar_config(disable=True)
    fields = FIELDS | masked
    wanted = diffused(tiny.checkpoint, pipeline, **fields, options=pipeline_options(*uses, pictures="control_image"))
    entries = {"CONTROLNETS": json.dumps([use.entry(tiny) for use in uses])}
    images = np.stack([image for use in uses for image in use.images])[None]
    made = generate(tiny, tiny.model, **fields, **entries, CONTROL_IMAGES=images)
    assert made.distance(wanted) <= TOLERANCE
    assert made.distance(generate(tiny, tiny.model, **fields)) > TOLERANCE


@pytest.mark.parametrize("tiny", ["sd15"], indirect=True)
@pytest.mark.parametrize("name", ["edges"])
def test_an_inpainting_controlnet_sees_what_is_to_be_kept(tiny: TinyServer, name: str) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetInpaintPipeline

    network = ControlNetModel.from_pretrained(tiny.directory / name)
    pipeline = StableDiffusionControlNetInpaintPipeline.from_pipe(
        oracle(tiny.checkpoint, None, True), controlnet=network
    )
    pipeline.set_progress_bar_config(disable=True)
    known = INIT[0].astype(np.float32) / 255
    known[MASK[0] >= 128] = -1.0
    condition = torch.from_numpy(known[None].transpose(0, 3, 1, 2))
    fields = FIELDS | {"MASK_IMAGE": MASK}
    options = {"control_image": condition, "controlnet_conditioning_scale": 1.0}
    wanted = diffused(tiny.checkpoint, pipeline, **fields, options=options)
    entry = {"name": tiny.controlnet(name), "picture": "inpaint"}
    made = generate(tiny, tiny.model, **fields, CONTROLNETS=json.dumps([entry]))
    assert made.distance(wanted) <= TOLERANCE


def test_what_lies_outside_the_mask_is_put_back_where_that_is_asked_for(tiny: TinyServer) -> None:
    fields = FIELDS | {"MASK_IMAGE": MASK}
    plain, composed = (generate(tiny, tiny.model, **fields, COMPOSITE=value) for value in (False, True))
    inside = MASK[0] >= 128
    assert np.array_equal(composed.image[~inside], INIT[0][~inside])
    assert Picture(composed.image[inside], {}).distance(plain.image[inside]) < 0.5
    assert not np.array_equal(plain.image[~inside], INIT[0][~inside])
    assert (plain.info["composite"], composed.info["composite"]) == (False, True)


def evicted(tiny: TinyServer) -> bool:
    """Whether nothing is left of the server's pictures, once all have gone that nobody has leased."""
    files = LeasedFiles(kept(tiny, "images"), ".safetensors", lambda _bytes: None)
    with files.writing():
        while files.evict(1):
            pass
    return not files.sizes()


def test_what_is_put_back_stays_until_it_is(tiny: TinyServer) -> None:
    """Denoiser and decoder are called one by one here: in between, whatever may go goes."""
    stages, fields = Stages(tiny), FIELDS | {"MASK_IMAGE": MASK, "COMPOSITE": True}
    wanted = generate(tiny, tiny.model, **fields)
    handed_over = stages.hand_over(stages.encode(**fields))
    assert not evicted(tiny)
    assert wanted.distance(stages.decode(handed_over)) <= TOLERANCE
    until = time.monotonic() + 10.0
    while not evicted(tiny):
        assert time.monotonic() < until, "it stays for longer"
        time.sleep(0.1)


def test_files_over_json(tiny: TinyServer) -> None:
    def encoded(pixels: np.ndarray) -> str:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    fields = FIELDS | {"MASK_IMAGE": MASK}
    wanted = generate(tiny, tiny.model, **fields)
    body = {name: value for name, value in fields.items() if not name.endswith("_IMAGE")}
    body |= {"ENCODED_INIT_IMAGE": encoded(INIT[0]), "ENCODED_MASK_IMAGE": encoded(MASK[0])}
    status, answer = post(tiny, f"v2/models/{tiny.model}/generate", body | {"OUTPUT_FORMAT": "png;base64"})
    assert status == 200
    with Image.open(io.BytesIO(base64.b64decode(answer["ENCODED_IMAGE"]))) as made:
        assert wanted.distance(np.asarray(made)) <= 0.5
    status, answer = post(tiny, f"v2/models/{tiny.model}/generate", body | {"ENCODED_INIT_IMAGE": "x"})
    assert status == 400 and 'ENCODED_INIT_IMAGE begins with "x"' in answer["error"]


def test_a_stream_counts_the_steps_that_are_taken(tiny: TinyServer) -> None:
    stream = Stream(tiny, **FIELDS, MASK_IMAGE=MASK, SCHEDULER="euler")
    *steps, (info, image) = list(stream)
    stream.close()
    assert [told for told, _ in steps] == [{"step": step, "of": 7} for step in range(1, 7)]
    assert image is not None and info["kind"] == "inpaint"


def encoding_s(tiny: TinyServer) -> float:
    model = tiny.inner("vae_encoder")
    return metrics(tiny)[f'swiftdiffusion_busy_seconds_total{{model="{model}",model_instance="{model}_0_0-0"}}']


def test_a_picture_is_encoded_once(tiny: TinyServer) -> None:
    fields = FIELDS | {"INIT_IMAGE": picture(64, 64, 77)}
    before = encoding_s(tiny)
    generate(tiny, tiny.model, **fields)
    once = encoding_s(tiny)
    generate(tiny, tiny.model, **fields | {"SEED": 4, "PROMPT": "a red circle", "MASK_IMAGE": MASK})
    generate(tiny, tiny.model, **{name: fields[name] for name in ("PROMPT", "SEED", "STEPS")})
    assert before < once == encoding_s(tiny)


def kept(tiny: TinyServer, what: str) -> Path:
    """Where the server keeps its `images`, or the `moments` that they were encoded to."""
    environment = Path(f"/proc/{tiny.running.pid}/environ").read_bytes()
    (runtime,) = re.findall(rb"SWIFTDIFFUSION_RUNTIME_DIRECTORY=([^\0]+)", environment)
    return host_cache_directory(Path(os.fsdecode(runtime))) / what


def test_a_picture_whose_encoding_has_gone_is_encoded_again(tiny: TinyServer) -> None:
    stages, fields = Stages(tiny), FIELDS | {"MASK_IMAGE": MASK}
    expected, _ = stages.denoise(stages.encode(**fields))
    texts = stages.encode(**fields)
    key = json.loads(texts["LATENT_KEYS"])["picture"]
    file = kept(tiny, "moments") / f"{key}.safetensors"
    file.unlink()
    latents, _ = stages.denoise(texts)
    assert np.abs(latents - expected).mean() < 1e-3
    assert file.exists()


def test_keys_of_nobody_are_refused(tiny: TinyServer) -> None:
    stages = Stages(tiny)
    texts = stages.encode(**FIELDS)
    with pytest.raises(InferenceServerException, match="LATENT_KEYS is not what `vae_encoder` writes"):
        stages.denoise(texts | {"LATENT_KEYS": b'{"picture": "../../etc/passwd"}'})


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.kills
def test_a_shard_that_dies_costs_time_alone(tiny: TinyServer) -> None:
    fields = FIELDS | {"INIT_IMAGE": picture(128, 128), "MASK_IMAGE": MASK, "STEPS": 200, "STRENGTH": 1.0}
    wanted = generate(tiny, tiny.model, **fields)
    with ThreadPoolExecutor(1) as threads:
        victim = threads.submit(generate, tiny, tiny.model, **fields)
        home, _ = roles(tiny)
        os.kill(stub_of(tiny.running, home), signal.SIGKILL)
        assert victim.result().distance(wanted) <= TOLERANCE


@pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
@pytest.mark.kills
def test_a_request_that_is_repeated_gets_its_picture_when_the_encoder_has_died(tiny: TinyServer) -> None:
    from swiftdiffusion.clients.client.client import Client
    from swiftdiffusion.clients.client.request import GenerationRequest

    request = GenerationRequest("a cat", seed=3, steps=10, init_image=INIT[0], mask_image=MASK[0], strength=0.7)
    with Client(tiny.grpc_url, model=tiny.model, timeout=60, retries=3) as client:
        wanted = client.generate(request).pixels
        os.kill(stub_of(tiny.running, tiny.inner("vae_encoder")), signal.SIGKILL)
        again = client.generate(request).pixels
    assert Picture(again, {}).distance(wanted) <= TOLERANCE
