"""What an evaluator tells the UNet of a call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lone_shard
import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.controlnets.calls import ControlNetCalls
from swiftdiffusion.python_backends.engine.evaluator import Evaluator
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.shard_metrics import ShardMetrics
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.patching.resident import ResidentLoras
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.request.completed import CompletedRequest


def evaluator_of(unet: UNet, directory: Path) -> Evaluator:
    loras, metrics = ResidentLoras(unet.patcher, directory, unet.beside), ShardMetrics("sd15", "shard", "shard_0")
    return Evaluator("shard", unet, loras, ControlNetCalls(pytest.fail, 1.0), metrics)


def two_runs() -> list[Denoising]:
    return [
        Denoising(
            CompletedRequest(str(seed), "", None, seed, 4, 5.0, 32, 32, None),
            lone_shard.CONFIG,
            LatentGeometry(4, 2),
            (torch.randn(2, 77, 16), None),
        )
        for seed in range(2)
    ]


def test_whether_halves_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(Checkpoint(checkpoints.sd15(tmp_path / "sd15", depth=2)), torch.device("cpu"), torch.float32)
    evaluator, runs = evaluator_of(unet, tmp_path), two_runs()
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


def test_a_set_that_cannot_be_had_fails_its_own_rows_alone(tmp_path: Path) -> None:
    """As where engines hold norms as constants: there sets of different requests are patched in one after the other."""
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "sd15", depth=2))
    unet = UNet(checkpoint, torch.device("cpu"), torch.float32)
    unet.beside = None
    unet.patcher.fix("unet", ())
    norm = lora_files.kohya_name("unet", "conv_norm_out")
    made = lora_files.MadeLora({f"{norm}.w_norm": torch.ones(16), f"{norm}.b_norm": torch.ones(16)})
    Canonicaliser(checkpoint).read(made.save(tmp_path / "norm.safetensors")).save(tmp_path / "norms.safetensors")
    evaluator, runs = evaluator_of(unet, tmp_path), two_runs()
    given = {run: run.model_input() for run in runs}
    (call,) = unet_calls([(run, half) for run in runs for half in run.halves], given)
    rows = call.rows
    (alone,) = unet_calls([(runs[0], half) for half in runs[0].halves], given)
    sets = tuple((("norms", 1.0),) if run is runs[1] else () for run, _ in rows)
    for _ in range(2):
        found = evaluator(replace(call, loras=sets))
        assert sorted(found.failures) == [row for row, (run, _) in enumerate(rows) if run is runs[1]]
        assert all("conv_norm_out" in str(error) for error in found.failures.values())
        wanted = evaluator(alone).prediction
        own = [row for row, (run, _) in enumerate(rows) if run is runs[0]]
        torch.testing.assert_close(found.prediction[own], wanted, rtol=0, atol=1e-5)
    with pytest.raises(InvalidRequestError, match="conv_norm_out"):
        evaluator(replace(call, loras=((("norms", 1.0),),) * len(rows)))
