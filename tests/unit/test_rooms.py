"""What is loaded where: models that compute nothing start without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from swiftdiffusion.python_backends.launcher.binary import find_server_binary

LIGHT = (
    "preprocess",
    "cancel",
    "control_image_store",
    "lora.loading.catalogue",
    "lora.loading.store",
    "lora.loading.tickets",
    "request.parsing",
    "shared_memory.host_cache",
    "backend.model_calls",
    "backend.reloadable",
    "controlnets.answers",
    "controlnets.images",
    "engine.info",
    "engine.placement",
    "lora.files.lora_set",
    "launcher.serve_command",
    "launcher.doctor_command",
)
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}
WITHOUT_NETWORKS = ("denoiser", "lora.patching.resident")
NETWORKS = {"diffusers.models.unets", "diffusers.models.autoencoders", "diffusers.pipelines"}


def loaded_by(module: str) -> set[str]:
    """Names of what a process loads that imports one module of `python_backends`."""
    wheel = find_server_binary().wheel
    if wheel is None:
        pytest.skip("needs the Python backend's module of the nvidia-pytriton wheel")
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(wheel / "backends" / "python")}
    command = [sys.executable, "-c", code, f"swiftdiffusion.python_backends.{module}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_what_computes_nothing_loads_no_torch(module: str) -> None:
    assert not loaded_by(module) & HEAVY


@pytest.mark.parametrize("module", WITHOUT_NETWORKS)
def test_what_evaluates_no_network_loads_none(module: str) -> None:
    assert not loaded_by(module) & NETWORKS
