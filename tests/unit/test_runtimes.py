"""Runtimes that cannot run here say what they lack."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import checkpoints
from swiftdiffusion.kernels.triton_language import MissingTritonError
from swiftdiffusion.python_backends.checkpoint import Checkpoint
from swiftdiffusion.python_backends.runtimes import Runtime, UnknownRuntimeError
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError
from swiftdiffusion.python_backends.unet import UNet


def test_an_unknown_one_is_named_with_those_that_are_there() -> None:
    with pytest.raises(UnknownRuntimeError, match="'onnx'; allowed: torch, compile, tensorrt"):
        Runtime("onnx")


def test_tensorrt_without_engines_names_the_command(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "checkpoint"))
    with pytest.raises(EngineMismatchError, match="swiftdiffusion build-engines --onnx"):
        UNet(checkpoint, torch.device("cpu"), torch.float32, Runtime("tensorrt", tmp_path))


@pytest.mark.parametrize("name", ["torch", "compile"])
def test_a_gpu_without_the_triton_language_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingTritonError, match=r"pip install 'swiftdiffusion\[kernels\]'"):
        Runtime(name).prepare(torch.nn.Linear(1, 1), torch.device("cuda"))
