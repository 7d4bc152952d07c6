"""Edits without a server, step by step, and as diffusers' pipelines make them."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from PIL import Image

from swiftdiffusion.python_backends.common.errors import EntryLostError
from swiftdiffusion.python_backends.engine.new_token_runs import TokenRuns, Transformers
from swiftdiffusion.python_backends.engine.placement import place
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.starts import Start
from swiftdiffusion.python_backends.engine.token_calls import token_call
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.lora.files.modules import adaptable_weights
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.checkpoint_settings import EDITING
from swiftdiffusion.python_backends.networks.latent_encoding import VaeEncoder, encode_picture
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS
from wire import array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from swiftdiffusion.python_backends.engine.template_store import TemplateStore
    from swiftdiffusion.python_backends.request.completed import CompletedRequest

CPU = torch.device("cpu")
TOLERANCE = 1.0
"""Mean absolute difference of pixels from diffusers', in units of 1/255."""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[1, H, W, 3] uint8: noise, of which every pixel counts."""
    return np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """A mask [1, H, W] uint8: 255 within a box, 0 around it."""
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, top:bottom, left:right] = 255
    return mask


class KeptHere(dict[str, np.ndarray]):
    """Pictures by key, as `Pictures` keeps them, of this process alone."""

    def put(self, kept: np.ndarray) -> str:
        key = hashlib.sha256(f"{kept.shape}".encode() + kept.tobytes()).hexdigest()
        self[key] = kept
        return key


@dataclass
class LocalEdits:
    """A checkpoint's parts, each loaded once."""

    checkpoint: Checkpoint
    guidance_scale: float = 5.0
    kept: KeptHere = field(default_factory=KeptHere)
    token_bytes: int = 2**30
    templates: TemplateStore | None = None

    def __post_init__(self) -> None:
        self.lost = 0
        self.unet = UNet(self.checkpoint, CPU, torch.float32)
        assert self.unet.stacks is not None
        self.make_token_runs()
        self.vae = VaeEncoder(self.checkpoint.load_vae(CPU, torch.float32))
        self.texts = self.checkpoint.load_text_pipeline(CPU, torch.float32)
        height, width = self.checkpoint.default_size
        of_image, of_mask = self.checkpoint.strength_defaults
        self.rules = RequestRules(
            steps=4,
            guidance_scale=self.guidance_scale,
            height=height,
            width=width,
            size_multiple=self.checkpoint.size_multiple,
            max_size=256,
            own_scheduler=self.checkpoint.scheduler_config["_class_name"],
            latent_cell=self.checkpoint.vae_scale_factor,
            img2img_strength=of_image,
            inpaint_strength=of_mask,
            only_inpaints=self.checkpoint.only_inpaints,
        )

    def make_token_runs(
        self, digest: str | None = None, count: Callable[[str, float], None] = lambda _what, _amount: None
    ) -> None:
        """Those of a shard of these networks, or of others, with the present templates."""
        stacks = self.unet.stacks
        known = Transformers(stacks.levels, stacks.widths, digest or self.unet.digest, 1000)
        self.token_runs = TokenRuns(known, self.token_bytes, self.templates, count=count)

    def parse(self, **fields: Any) -> CompletedRequest:
        """A request as `preprocess` completes it."""
        arrays = {
            name: value if isinstance(value, np.ndarray) else array(name, value) for name, value in fields.items()
        }
        return parse_request(
            {name: tensor[0] for name, tensor in arrays.items()},
            self.rules,
            Catalogue(None),
            keep_picture=self.kept.put,
        )

    @torch.no_grad()
    def run(self, request: CompletedRequest) -> Denoising:
        """A run at step 0."""
        pair = []
        for text in (request.negative_prompt, request.prompt):  # one by one as in diffusers: to the last bit
            encoded = self.texts.encode_prompt(
                text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            pair.append((encoded[0][0], encoded[2][0] if len(encoded) == 4 else None))
        pooled = [each for _, each in pair if each is not None]
        geometry = LatentGeometry(
            self.checkpoint.latent_channels,
            self.checkpoint.vae_scale_factor,
            self.checkpoint.guidance_embedding_width,
        )
        embeddings = torch.stack([tokens for tokens, _ in pair]), torch.stack(pooled) if pooled else None
        start = self._start(request)
        run = Denoising(request, self.checkpoint.scheduler_config, geometry, embeddings, start=start)
        if start is not None:
            run.token_run = self.token_runs.make(request, start, run.timesteps)
        return run

    @torch.no_grad()
    def latents(self, request: CompletedRequest) -> torch.Tensor:
        """Final latents, both halves of a step in one call as in diffusers."""
        run = self.run(request)
        while not run.done:
            self.step(run)
        return run.latents

    @torch.no_grad()
    def step(self, run: Denoising, shards: int = 1) -> None:
        """One step of a run, as a shard takes it with the help of others: again where something could not be read."""
        predictions = {}
        for half in run.halves:
            run.tokens(half)
        given = {run: run.model_input()}
        own, *theirs = (unet_calls(rows, given) for rows in place([run], shards))
        for call in own + [replace(call, tokens=()) for calls in theirs for call in calls]:
            with token_call(self.unet.stacks, call.tokens) if call.tokens else nullcontext({}) as failures:
                rows = self.unet.decode(self.unet.encode(call.tensors, traced=not call.tokens))
            if failures:
                assert all(isinstance(each, EntryLostError) for each in failures.values())
                self.lost += 1
                run.look_again()
                return
            predictions |= {half: row for (_, half), row in zip(call.rows, rows.split(1), strict=True)}
        run.advance(predictions)

    def _start(self, request: CompletedRequest) -> Start | None:
        edit, cell = request.edit, self.checkpoint.vae_scale_factor
        if edit is None:
            return None
        pixels, mask = self.kept[edit.picture], None if edit.mask is None else self.kept[edit.mask]
        takes_masked = self.checkpoint.only_inpaints
        without_picture = takes_masked and edit.starts_from_noise
        return Start(
            scale=self.checkpoint.latent_scale,
            skipped=edit.skipped,
            picture=None if without_picture else encode_picture(self.vae, pixels),
            mask=None if mask is None else torch.from_numpy(mask[::cell, ::cell].astype(np.float32))[None, None],
            masked=encode_picture(self.vae, pixels, mask) if takes_masked else None,
            from_noise=edit.starts_from_noise,
        )


@cache
def _pipeline(checkpoint: Path, is_masked: bool) -> Any:
    family = Checkpoint(checkpoint).family
    kind = getattr(diffusers, EDITING[family][is_masked])
    options = {} if family == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = kind.from_pretrained(checkpoint, dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline.scheduler


def oracle(checkpoint: Path, scheduler: str | None, is_masked: bool) -> Any:
    """diffusers' pipeline that begins with a picture; of a checkpoint the same one, with another scheduler."""
    pipeline, own = _pipeline(checkpoint, is_masked)
    pipeline.scheduler = own
    if scheduler is not None:
        named = SCHEDULERS[scheduler]
        pipeline.scheduler = getattr(diffusers, named.class_name).from_config(own.config, **named.changes)
    return pipeline


def expected(
    pipeline: Any, request: CompletedRequest, given: Mapping[str, np.ndarray], output_type: str, **more: Any
) -> Any:
    """What diffusers makes of a request whose INIT_IMAGE and MASK_IMAGE are `given`."""
    image = Image.fromarray(given["INIT_IMAGE"][0])
    options: dict[str, Any] = {"image": image}
    if "MASK_IMAGE" in given:
        mask = Image.fromarray(given["MASK_IMAGE"][0])
        options |= {"mask_image": mask, "height": request.height, "width": request.width}
    assert request.edit is not None
    return pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        strength=request.edit.strength,
        eta=0.0 if request.scheduler is None else SCHEDULERS[request.scheduler].eta,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type=output_type,
        **options,
        **more,
    ).images


def diffused(checkpoint: Path, pipeline: Any = None, **fields: Any) -> np.ndarray:
    """uint8 [H, W, 3] of diffusers, of a request's fields; `options` are its pipeline's own."""
    pipeline = pipeline or oracle(checkpoint, fields.get("SCHEDULER"), "MASK_IMAGE" in fields)
    image = fields["INIT_IMAGE"][0]
    options: dict[str, Any] = {"image": Image.fromarray(image), **fields.get("options", {})}
    if "MASK_IMAGE" in fields:
        options |= {"mask_image": Image.fromarray(fields["MASK_IMAGE"][0])}
        options |= {"height": fields.get("HEIGHT", image.shape[0]), "width": fields.get("WIDTH", image.shape[1])}
    made = pipeline(
        prompt=fields["PROMPT"],
        negative_prompt=fields["NEGATIVE_PROMPT"],
        num_inference_steps=fields["STEPS"],
        guidance_scale=fields["GUIDANCE_SCALE"],
        strength=fields["STRENGTH"],
        generator=torch.Generator("cpu").manual_seed(fields["SEED"]),
        **options,
    )
    return np.asarray(made.images[0])


@contextmanager
def patched(pipeline: Any, deltas: Mapping[tuple[str, str], torch.Tensor]) -> Iterator[None]:
    """A pipeline of diffusers with a LoRA's deltas, by part and module, in its weights; afterwards as it was."""
    changed = [(adaptable_weights(getattr(pipeline, part))[name], delta) for (part, name), delta in deltas.items()]
    originals = [weight.detach().clone() for weight, _ in changed]
    try:
        for weight, delta in changed:
            weight += delta.reshape(weight.shape)
        yield
    finally:
        for (weight, _), original in zip(changed, originals, strict=True):
            weight.copy_(original)
