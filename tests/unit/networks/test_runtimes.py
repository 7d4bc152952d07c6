"""Runtimes that cannot run here say what they lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoints
from swiftdiffusion.kernels.triton_language import MissingTritonError
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_encoding import PromptEncoder
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet import UNet
from swiftdiffusion.python_backends.tensorrt.flavours import FLAVOURS
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError


def test_an_unknown_one_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="'onnx'; allowed: torch, compile, tensorrt, tensorrt-rtx"):
        Runtime("onnx")


@pytest.mark.parametrize("name", FLAVOURS)
def test_engines_that_are_missing_name_the_command(name: str, tmp_path: Path) -> None:
    checkpoint, cpu = Checkpoint(checkpoints.sd15(tmp_path / "checkpoint")), torch.device("cpu")
    runtime = Runtime(name, tmp_path)
    with pytest.raises(EngineMismatchError, match=r"no engine unet_encoder.*swiftdiffusion build-engines --onnx"):
        UNet(checkpoint, cpu, torch.float32, runtime)
    with pytest.raises(EngineMismatchError, match="no engine text_encoder"):
        PromptEncoder(checkpoint, cpu, torch.float32, runtime=runtime)
    with pytest.raises(EngineMismatchError, match="no engine vae_decoder"):
        runtime.decoder(checkpoint.load_vae(cpu, torch.float32), cpu)


@pytest.mark.parametrize("name", ["torch", "compile"])
def test_a_gpu_without_the_triton_language_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingTritonError, match=r"pip install 'swiftdiffusion\[kernels\]'"):
        Runtime(name).prepare(torch.nn.Linear(1, 1), torch.device("cuda"))


COMMANDS = """
import sys
for package in ("onnx", "onnxscript", "onnxruntime", "onnx_ir", "tensorrt", "tensorrt_rtx", "triton"):
    sys.modules[package] = None
from typer.testing import CliRunner
from swiftdiffusion.clients.cli import app
for words in sys.stdin.read().splitlines():
    result = CliRunner().invoke(app, words.split(" "))
    print(result.exit_code, " ".join(result.output.split()))
"""


@pytest.mark.xdist_group("tests/unit/networks/test_unet.py")  # small groups come last, and this takes long
def test_commands_without_the_packages_say_what_to_install(tmp_path: Path) -> None:
    checkpoint = checkpoints.sd15(tmp_path / "checkpoint")
    (tmp_path / "unet_encoder.onnx").touch()
    export = f"export --checkpoint {checkpoint} --repository {tmp_path}"
    graphs, engines = f"--onnx {tmp_path}", f"--engines {tmp_path}/engines"
    asked = {
        f"{export}/plain": "0 ",
        f"{export}/engines --runtime tensorrt --unet-gpus 0 {engines}": "2 TensorRT is missing",
        f"{export}/engines --runtime tensorrt-rtx --unet-gpus 0 {engines}": "2 TensorRT-RTX is missing",
        f"export-onnx --checkpoint {checkpoint} --output {tmp_path}/onnx": "2 export-onnx needs onnx",
        f"build-engines {graphs} {engines}": "2 ",
        f"build-engines --runtime tensorrt-rtx {graphs} {engines}": "2 ",
    }
    command = [sys.executable, "-c", COMMANDS]
    said = subprocess.run(command, input="\n".join(asked), capture_output=True, text=True, check=True).stdout
    for line, beginning in zip(said.splitlines(), asked.values(), strict=True):
        assert line.startswith(beginning), line
        assert beginning == "0 " or "pip install" in line
    assert not (tmp_path / "engines").exists()
