"""On the CPU a LoRA set that comes back is only pointed to: traced calls and others compute with it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching import resident
from swiftdiffusion.python_backends.lora.patching.resident import ResidentLoras
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.unet import UNet, example

CPU = torch.device("cpu")
EVERYTHING, SOME = (((f"{number:016x}", 0.5),) for number in range(2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl"), depth=2))


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host cache with a LoRA over everything and one over every third module."""
    directory = tmp_path_factory.mktemp("files")
    base = BaseModules.of(checkpoint)
    shapes = base.shapes["unet"]
    some = {name: shape for number, (name, shape) in enumerate(shapes.items()) if number % 3 == 0}
    made = {EVERYTHING: lora_files.kohya({"unet": dict(shapes)}), SOME: lora_files.kohya({"unet": some}, seed=3)}
    canonicalise = Canonicaliser(checkpoint)
    for ((key, _),), lora in made.items():
        canonicalise(lora.save(directory / f"{key}.file"), directory / f"{key}.safetensors")
    return directory


@pytest.mark.parametrize("rows", [2, 3], ids=["traced", "eager"])
def test_a_set_that_comes_back_gives_the_same_bits(checkpoint: Checkpoint, files: Path, rows: int) -> None:
    unet = UNet(checkpoint, CPU, torch.float32)
    loras = ResidentLoras(unet.patcher, files)
    tensors = example(checkpoint, rows) | {"LATENTS": torch.randn(rows, 4, 16, 16)}
    seen: dict[LoraSet, torch.Tensor] = {}
    for wanted in ((), EVERYTHING, SOME, (), SOME, EVERYTHING, EVERYTHING + SOME, SOME, ()):
        assert not wanted or loras.keeps(wanted) == (wanted in seen)
        loras.ensure(wanted)
        assert torch.equal(unet(tensors), seen.setdefault(wanted, unet(tensors)))
    assert len({each.numpy().tobytes() for each in seen.values()}) == len(seen)
    for wanted, expected in seen.items():
        fresh = UNet(checkpoint, CPU, torch.float32)
        ResidentLoras(fresh.patcher, files).ensure(wanted)
        assert torch.equal(fresh(tensors), expected)


def test_what_is_kept_is_bounded(checkpoint: Checkpoint, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(checkpoint, CPU, torch.float32)
    loras = ResidentLoras(unet.patcher, files)
    loras.ensure(SOME)
    (one,) = loras._kept.values()  # its size is what counts
    assert loras.can_keep(2)
    monkeypatch.setattr(resident, "KEPT_BYTES", one.nbytes)
    assert loras.can_keep(1) and not loras.can_keep(2)
    few = ResidentLoras(unet.patcher, files)
    few.ensure(EVERYTHING)
    assert not few.keeps(EVERYTHING)
