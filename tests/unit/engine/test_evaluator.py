"""What an evaluator tells the UNet of a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lone_shard
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.controlnets.calls import ControlNetCalls
from swiftdiffusion.python_backends.engine.evaluator import Evaluator
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.shard_metrics import ShardMetrics
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.lora.patching.resident import ResidentLoras
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.request.completed import CompletedRequest


def test_whether_halves_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(Checkpoint(checkpoints.sd15(tmp_path / "sd15", depth=2)), torch.device("cpu"), torch.float32)
    loras = ResidentLoras(unet.patcher, tmp_path, unet.beside)
    evaluator = Evaluator(
        "shard", unet, loras, ControlNetCalls(pytest.fail, 1.0), ShardMetrics("sd15", "shard", "shard_0")
    )
    runs = [
        Denoising(
            CompletedRequest(str(seed), "", None, seed, 4, 5.0, 32, 32, None),
            lone_shard.CONFIG,
            LatentGeometry(4, 2),
            (torch.randn(2, 77, 16), None),
        )
        for seed in range(2)
    ]
    encode, told = UNet.encode, list[bool]()

    def noted(self: UNet, *given: Any, **options: Any) -> Any:
        told.append(options["halves_alike"])
        return encode(self, *given, **options)

    monkeypatch.setattr(UNet, "encode", noted)
    given = {run: run.model_input() for run in runs}
    for rows in ([(run, half) for run in runs for half in run.halves], [(runs[0], 0), (runs[1], 1)], [(runs[0], 1)]):
        (call,) = unet_calls(rows, given)
        assert evaluator(call).prediction.shape[0] == len(rows)
    assert told == [True, False, False]
