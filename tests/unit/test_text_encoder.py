"""The model `text_encoder`: where there is a catalogue, its first LoRA waits for nothing that load can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import model_process
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks import kept_embeddings, prompt_encoding
from swiftdiffusion.python_backends.text_encoder import TritonPythonModel


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One whose directories are its own, and that is as it was afterwards."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "runtime"))
    for module in (kept_embeddings, prompt_encoding):
        monkeypatch.setattr(module, "host_cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setattr("swiftdiffusion.python_backends.text_encoder.host_cache_directory", lambda: tmp_path / "cache")
    threads = torch.get_num_threads()
    with model_process.own_metrics():
        yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("catalogue", "times"), [("loras", 1), ("", 0)])
def test_the_patcher_is_warmed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: str, times: int) -> None:
    warmed: list[Patcher] = []
    monkeypatch.setattr(Patcher, "warm_up", lambda self: warmed.append(self))
    checkpoint = checkpoints.sd15(tmp_path / "sd15")
    (tmp_path / "loras").mkdir()
    parameters = {"checkpoint": str(checkpoint), "dtype": "float32", "threads": "1", "loras": catalogue}
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    args = {
        "model_name": "text_encoder",
        "model_instance_name": "text_encoder_0",
        "model_instance_device_id": "0",
        "model_instance_kind": "CPU",
        "model_repository": str(tmp_path / "text_encoder"),
        "model_config": json.dumps(config),
    }
    TritonPythonModel().load(args)
    assert len(warmed) == times
