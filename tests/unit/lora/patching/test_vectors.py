"""Norms' weights and biases under LoRAs: in place, summed once, and back to the last bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.fused_modules import fuse
from swiftdiffusion.python_backends.networks.unet import UNet, example

CPU = torch.device("cpu")
Loras = dict[str, CanonicalLora]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl")))


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> torch.nn.Module:
    return checkpoint.load_unet(CPU, torch.float32)


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Loras:
    modules, file = BaseModules.of(checkpoint), tmp_path_factory.mktemp("loras") / "lora.safetensors"
    norms = {name: shape for name, shape in modules.vectors["unet"].items() if "norm" in name}
    made = {
        "vectors": lora_files.differences({}, {"unet": modules.vectors["unet"]}, norm_roles=("w_norm", "diff_b")),
        "norms": lora_files.differences({}, {"unet": norms}),
        "factors": lora_files.kohya({"unet": modules.shapes["unet"]}),
    }
    return {name: Canonicaliser(checkpoint).read(lora.save(file)) for name, lora in made.items()}


def everything(model: torch.nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in lora_files.adaptable({"unet": model}).items()}


def same(left: dict[tuple[str, str], torch.Tensor], right: dict[tuple[str, str], torch.Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


SETS = (["vectors"], ["vectors", "factors"], ["factors"], ["norms", "vectors", "factors"], ["norms"], [])


@pytest.mark.parametrize("one_launch", [False, True])
def test_every_set_gives_the_same_bits_whatever_came_before(
    unet: torch.nn.Module, loras: Loras, one_launch: bool
) -> None:
    ours = copy.deepcopy(unet)
    patcher, original = Patcher({"unet": ours}, one_launch), everything(unet)
    for kinds in (*SETS, *reversed(SETS), *SETS):
        patcher.apply([(loras[kind], 0.5) for kind in kinds])
        fresh = copy.deepcopy(unet)
        Patcher({"unet": fresh}, one_launch).apply([(loras[kind], 0.5) for kind in kinds])
        assert same(everything(ours), everything(fresh))
    assert same(everything(ours), original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_rounded_once(unet: torch.nn.Module, loras: Loras, dtype: torch.dtype) -> None:
    ours = copy.deepcopy(unet).to(dtype)
    exact = copy.deepcopy(ours).float()
    original, chosen = everything(ours), [(loras["vectors"], 0.3), (loras["norms"], -0.7)]
    patcher = Patcher({"unet": ours})
    patcher.apply(chosen)
    Patcher({"unet": exact}).apply(chosen)
    assert same(everything(ours), {name: tensor.to(dtype) for name, tensor in everything(exact).items()})
    patcher.apply([])
    assert same(everything(ours), original)


def test_graphs_see_what_is_patched_in_place(checkpoint: Checkpoint, loras: Loras) -> None:
    """Traced graphs, from before the patch, give what a network gives that never was another."""
    ours, tensors = UNet(checkpoint, CPU, torch.float32), example(checkpoint, 2)
    before = ours(tensors)
    ours.patcher.apply([(loras["vectors"], 1.0)])
    patched = ours(tensors)
    assert not torch.equal(patched, before)
    module = checkpoint.load_unet(CPU, torch.float32)
    Patcher({"unet": module}).apply([(loras["vectors"], 1.0)])
    conditions = {"text_embeds": tensors["TEXT_EMBEDS"], "time_ids": tensors["TIME_IDS"]}
    with torch.inference_mode():
        wanted = module(
            tensors["LATENTS"],
            tensors["TIMESTEPS"].reshape(-1),
            tensors["ENCODER_HIDDEN_STATES"],
            added_cond_kwargs=conditions,
        ).sample
    torch.testing.assert_close(patched, wanted, rtol=1e-4, atol=1e-5)
    ours.patcher.apply([])
    assert torch.equal(ours(tensors), before)


def test_fused_modules_have_the_same_vectors(unet: torch.nn.Module, loras: Loras) -> None:
    fused, plain = copy.deepcopy(unet), copy.deepcopy(unet)
    fuse(fused)
    for model in (fused, plain):
        Patcher({"unet": model}).apply([(loras["vectors"], 1.0)])
    assert same(everything(fused), everything(plain))


def test_vectors_stay_where_they_are(unet: torch.nn.Module, loras: Loras) -> None:
    ours = copy.deepcopy(unet)
    vectors = [parameter for parameter in ours.parameters() if parameter.ndim == 1]
    addresses = [vector.data_ptr() for vector in vectors]
    Patcher({"unet": ours}).apply([(loras["vectors"], 1.0)])
    assert [vector.data_ptr() for vector in vectors] == addresses


def test_a_canonical_file_keeps_vectors(loras: Loras, tmp_path: Path) -> None:
    loras["vectors"].save(tmp_path / "lora.safetensors")
    assert CanonicalLora.open(tmp_path / "lora.safetensors").modules == loras["vectors"].modules
