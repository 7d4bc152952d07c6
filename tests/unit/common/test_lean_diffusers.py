"""A process that imports diffusers without what others need of it: what it computes, what it can do afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

START = """
import sys
from swiftdiffusion.python_backends.common.lean_diffusers import import_diffusers

import_diffusers()
import diffusers
"""


def said(code: str) -> list[str]:
    """Lines that a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_needless_is_imported_and_all_of_it_is_there_for_who_asks() -> None:
    code = """
diffusers.UNet2DConditionModel, diffusers.ControlNetModel, diffusers.AutoencoderKL
absent = ("torch._dynamo", "peft", "transformers", "scipy.stats", "scipy.integrate", "scipy.special")
print([name for name in absent if name in sys.modules])

scheduler = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
print(len(scheduler.timesteps))
scheduler = diffusers.LMSDiscreteScheduler()
scheduler.set_timesteps(4)
print(scheduler.get_lms_coefficient(2, 1, 0) != 0)

import peft, torch, transformers
print(peft.LoraConfig(r=2).r, transformers.CLIPTextConfig().num_hidden_layers)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert said(START + code) == ["[]", "4", "True", "2 12", "2.0"]


def test_where_diffusers_is_imported_already_nothing_changes() -> None:
    code = "\nprint(diffusers.utils.is_peft_available(), 'torch._dynamo' in sys.modules)"
    assert said("import diffusers.utils" + START + code) == ["True True"]


def test_networks_compute_the_same_bits(tmp_path: Path) -> None:
    checkpoint = checkpoints.sdxl(tmp_path / "checkpoint", time_cond_proj_dim=32)
    checkpoints.controlnet(checkpoints.sdxl(tmp_path / "plain"), tmp_path / "edges", seed=0)
    code = f"""
import hashlib, pathlib, sys, torch
from swiftdiffusion.python_backends.controlnets.weights import load_controlnet
from swiftdiffusion.python_backends.engine.guidance import guidance_embedding
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents
from swiftdiffusion.python_backends.networks.unet import UNet, arguments, example

torch.set_grad_enabled(False)
checkpoint = Checkpoint(pathlib.Path({str(checkpoint)!r}))
given = example(checkpoint, 2)
given["LATENTS"] += torch.linspace(-1, 1, given["LATENTS"].numel()).view_as(given["LATENTS"])
given["TIMESTEP_COND"] = guidance_embedding(8.0, 32).repeat(2, 1)
cpu = torch.device("cpu")
noise = UNet(checkpoint, cpu, torch.float32)(given)
pixels = decode_latents(checkpoint.load_vae(cpu, torch.float32), noise)
network = load_controlnet(pathlib.Path({str(tmp_path / "edges")!r}), checkpoint, torch.float32).eval()
latents, steps, prompt, pooled, ids, _ = arguments(given, cpu, torch.float32)
height, width = checkpoint.default_size
_, mid = network(
    latents, steps, prompt, torch.ones(2, 3, height, width),
    added_cond_kwargs={{"text_embeds": pooled, "time_ids": ids}}, return_dict=False,
)
print(*(hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in (noise, pixels, mid)))
"""
    assert said(START + code) == said("import transformers, peft, diffusers" + code)


def test_a_pipeline_of_text_encoders_needs_no_more_and_embeds_to_the_same_bits(tmp_path: Path) -> None:
    checkpoint = checkpoints.sdxl(tmp_path / "checkpoint")
    code = f"""
import hashlib, pathlib, sys, torch
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

torch.set_grad_enabled(False)
pipeline = Checkpoint(pathlib.Path({str(checkpoint)!r})).load_text_pipeline(torch.device("cpu"), torch.float32)
embeddings = pipeline.encode_prompt("a red circle", negative_prompt="blue", do_classifier_free_guidance=True)
print(*(hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in embeddings))
"""
    start = START.replace("import_diffusers", "import_pipelines")
    absent = "\nprint([name for name in ('peft', 'scipy.stats', 'scipy.integrate') if name in sys.modules])"
    assert said(start + code + absent) == [*said("import peft, diffusers" + code), "[]"]
