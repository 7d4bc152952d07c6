"""What an engine wants of the weights that it reads where they lie, and of the LoRAs that are patched into them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

import checkpoints
import lora_files
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.tensorrt.engine import ALIGNMENT, check_weight, parameters
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError, Machine
from swiftdiffusion.python_backends.tensorrt.runtime_cache import cache_path

CPU, HALF = torch.device("cpu"), torch.float16
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15 = {"cross_attention_dim": 768}


def aligned(*shape: int) -> torch.Tensor:
    """Of a piece of memory that begins where engines read."""
    raw = torch.zeros(torch.Size(shape).numel() + ALIGNMENT, dtype=HALF)
    start = -raw.data_ptr() % ALIGNMENT // HALF.itemsize
    return raw[start : start + torch.Size(shape).numel()].view(shape)


def test_a_weight_as_it_should_be() -> None:
    check_weight("a.weight", {"a.weight": aligned(8, 16)}, HALF, (8, 16))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"the network has nothing"),
        ({"a.weight": aligned(8, 16).float()}, r"is torch\.float16 \[8, 16\]; the network has torch\.float32"),
        ({"a.weight": aligned(16, 8)}, r"the network has torch\.float16 \[16, 8\]"),
        ({"a.weight": aligned(16, 8).T}, r"with strides \[1, 8\]; engines read contiguous ones"),
        ({"a.weight": aligned(9, 16)[1:]}, "at multiples of 256 bytes"),
    ],
    ids=["none", "type", "shape", "strides", "address"],
)
def test_a_weight_that_an_engine_cannot_read(given: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(EngineMismatchError, match=said):
        check_weight("a.weight", given, HALF, (8, 16))


@pytest.mark.parametrize("config", [SDXL, SD15], ids=["sdxl", "sd15"])
def test_stacked_weights_of_the_published_families_are_aligned(config: dict[str, object]) -> None:
    """A GPU's allocations are; what follows in a stack is by its size."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**config)
    shapes = [tuple(weight.shape) for weight in adaptable_weights(unet).values()]
    assert len(shapes) > 200
    for shape in {each for each in shapes if shapes.count(each) > 1}:
        assert torch.Size(shape).numel() * HALF.itemsize % ALIGNMENT == 0, shape


def test_where_what_was_compiled_lies() -> None:
    machine = Machine("NVIDIA RTX 6000 Ada", "8.9", "1.7.1.116")
    assert cache_path(Path("/e/unet_encoder.plan"), machine) == Path(
        "/e/unet_encoder.NVIDIA-RTX-6000-Ada-1.7.1.116.cache"
    )


def test_loras_of_what_is_constant_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "checkpoint", depth=2))
    unet = checkpoint.load_unet(CPU, torch.float32)
    patcher, shapes = Patcher({"unet": unet}, in_place=True), BaseModules.of(checkpoint).shapes["unet"]
    patcher.fix("unet", {name for name, shape in shapes.items() if len(shape) == 4})
    canonicaliser = Canonicaliser(checkpoint)

    def made(number: int, names: list[str]) -> Path:
        return lora_files.kohya({"unet": {name: shapes[name] for name in names}}).save(
            tmp_path / f"{number}.safetensors"
        )

    linear = [name for name, shape in shapes.items() if len(shape) == 2]
    before = {name: tensor.clone() for name, tensor in parameters(unet).items()}
    with pytest.raises(InvalidRequestError, match=r"a LoRA changes unet\.conv_in: it is constant in an engine"):
        patcher.apply([(canonicaliser.read(made(0, [*linear, "conv_in"])), 1.0)])
    norm = tmp_path / "norm.safetensors"
    name = lora_files.kohya_name("unet", "conv_norm_out")
    lora_files.MadeLora({f"{name}.w_norm": torch.ones(16), f"{name}.b_norm": torch.ones(16)}).save(norm)
    with pytest.raises(InvalidRequestError, match=r"a LoRA changes unet\.conv_norm_out.*: it is constant"):
        patcher.apply([(canonicaliser.read(norm), 1.0)])
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters(unet).items())
    assert patcher.apply([(canonicaliser.read(made(1, linear)), 1.0)]) == len(linear)
