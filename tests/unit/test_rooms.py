"""What is loaded where: models that compute nothing start without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from swiftdiffusion.python_backends.launcher.binary import find_server_binary

LIGHT = (
    "preprocess",
    "cancel",
    "pipelines",
    "control_image_store",
    "lora.loading.catalogue",
    "lora.loading.store",
    "lora.loading.tickets",
    "request.parsing",
    "shared_memory.host_cache",
    "backend.model_calls",
    "backend.model",
    "controlnets.answers",
    "shared_memory.pictures",
    "request.editing",
    "engine.info",
    "engine.placement",
    "lora.files.lora_set",
    "launcher.serve_command",
    "launcher.doctor_command",
)
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}

LOADING = """
import importlib, json, sys
for module in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(f"swiftdiffusion.python_backends.{module}")
    print(json.dumps([module, sorted(set(sys.modules) - before)]))
"""


def loaded_by(*modules: str) -> dict[str, set[str]]:
    """What each module of `python_backends` adds to what a process has loaded that imports them one after the other."""
    wheel = find_server_binary().wheel
    if wheel is None:
        pytest.skip("needs the Python backend's module of the nvidia-pytriton wheel")
    environment = {**os.environ, "PYTHONPATH": str(wheel / "backends" / "python")}
    command = [sys.executable, "-c", LOADING, *modules]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return {module: set(added) for module, added in map(json.loads, run.stdout.splitlines())}


def test_what_computes_nothing_loads_no_torch() -> None:
    added = loaded_by(*LIGHT)
    assert len(added) == len(LIGHT)
    assert {module: names & HEAVY for module, names in added.items() if names & HEAVY} == {}
