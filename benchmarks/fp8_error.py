"""What 8-bit floats change, as a CPU emulates them: a step of a UNet, and pictures.

The UNet has SDXL's structure at a fifth of its width, random weights and two rows, of which the first has a prompt of
zeros; its error is against float32, beside those of diffusers' modules in half precision. The pictures are the demo
family's, of held-out prompts, drawn by diffusers with and without.
"""

from __future__ import annotations

import json
import shlex
import sys
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import gpu_networks
import numpy as np
import torch
import typer
from machine import describe
from rich.console import Console
from rich.progress import track

from swiftdiffusion.export.demo.pipeline import GUIDANCE_SCALE, STEPS, load_pipeline
from swiftdiffusion.export.demo.prompts import held_out_prompts
from swiftdiffusion.python_backends.lora.files.modules import UNET
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.fp8 import Fp8Copies, Fp8Linear

ROOT = Path(__file__).resolve().parents[1]


def in_8_bits(unet: torch.nn.Module) -> dict[str, int]:
    """Changes a UNet; how many of its linear layers that are."""
    Fp8Copies(unet, Patcher({UNET: unet}, in_place=True), UNET)
    of = [module for module in unet.modules() if isinstance(module, torch.nn.Linear)]
    return {"linear_layers": len(of), "in_8_bits": sum(isinstance(module, Fp8Linear) for module in of)}


def step() -> dict[str, Any]:
    """Relative errors of one."""
    torch.manual_seed(0)
    unet = gpu_networks.unet(False, torch.device("cpu"), torch.float32)
    given = gpu_networks.inputs(unet, 2)
    given[2][0] = 0
    exact, errors = gpu_networks.diffusers_call(unet, given)(), dict[str, float]()
    for dtype in (torch.float16, torch.bfloat16):
        call = gpu_networks.diffusers_call(deepcopy(unet).to(dtype), tuple(each.to(dtype) for each in given))
        errors[str(dtype).removeprefix("torch.")] = gpu_networks.relative_error(call().float(), exact)
    layers = in_8_bits(unet)
    errors["fp8"] = gpu_networks.relative_error(gpu_networks.diffusers_call(unet, given)(), exact)
    return {**layers, "relative_error": errors}


def pictures(prompts: int, steps: int) -> dict[str, Any]:
    """Mean absolute differences of pixels, of 255, prompt by prompt."""
    pipeline = load_pipeline()

    def drawn(what: str) -> np.ndarray:
        made = []
        for prompt in track(held_out_prompts(prompts), what):
            seeded = torch.Generator().manual_seed(prompt.seed)
            options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE, "generator": seeded}
            made.append(255 * pipeline(prompt.text, output_type="np", **options).images[0])
        return np.stack(made)

    before = drawn("float32")
    layers = in_8_bits(pipeline.unet)
    differences = np.abs(drawn("fp8") - before)
    return {
        **layers,
        "mean_absolute": round(float(differences.mean()), 3),
        "by_prompt": [round(float(each), 3) for each in differences.mean((1, 2, 3))],
        "largest": round(float(differences.max()), 1),
    }


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Pictures.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Of each.")] = STEPS,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = ROOT / "benchmarks/results/fp8_error.json",
) -> None:
    """Measures both, which takes a minute."""
    command = shlex.join(["python", "benchmarks/fp8_error.py", *sys.argv[1:]])
    with torch.no_grad():
        result = {"command": command, "machine": describe(), "step": step(), "pictures": pictures(prompts, steps)}
    out.write_text(json.dumps(result) + "\n", "utf-8")
    Console().print_json(data=result)


if __name__ == "__main__":
    typer.run(main)
