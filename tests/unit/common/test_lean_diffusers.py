"""A process that imports diffusers without what others need of it: what it computes, what it can do afterwards."""

from __future__ import annotations

import subprocess
import sys

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
print([name for name in ("torch._dynamo", "peft", "transformers", "scipy.stats") if name in sys.modules])

scheduler = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
print(len(scheduler.timesteps))

import peft, torch, transformers
print(peft.LoraConfig(r=2).r, transformers.CLIPTextConfig().num_hidden_layers)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert said(START + code) == ["[]", "4", "2 12", "2.0"]


def test_where_diffusers_is_imported_already_nothing_changes() -> None:
    code = "\nprint(diffusers.utils.is_peft_available(), 'torch._dynamo' in sys.modules)"
    assert said("import diffusers.utils" + START + code) == ["True True"]
