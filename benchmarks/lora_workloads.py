"""What the LoRA benchmarks work on: random LoRA files, and a UNet with as many modules as SDXL's."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from swiftdiffusion.python_backends.lora.files.modules import adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""The linear layers of SDXL's attention blocks: the 722 modules of the usual LoRA."""
SDXL = {
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 2,
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 32 * 6 + 128,
    "cross_attention_dim": 256,
}
"""SDXL's UNet with 64 channels where it has 320."""


class Files:
    """LoRA files with random factors over the usual modules, in the form of names that all sides read."""

    def __init__(self, directory: Path, unet: torch.nn.Module, ranks: tuple[int, ...]) -> None:
        self._directory, self._ranks = directory, ranks
        weights = adaptable_weights(unet)
        self._shapes = {name: weight.shape for name, weight in weights.items() if name.endswith(ROLES)}
        self.modules, self._count = len(self._shapes), 0

    def make(self) -> Path:
        """A new file, float16."""
        random = torch.Generator().manual_seed(self._count)
        tensors = {}
        for number, (name, (out, features)) in enumerate(self._shapes.items()):
            rank = self._ranks[number % len(self._ranks)]
            tensors[f"unet.{name}.lora_A.weight"] = 0.02 * torch.randn(rank, features, generator=random)
            tensors[f"unet.{name}.lora_B.weight"] = 0.02 * torch.randn(out, rank, generator=random)
        path = self._directory / f"lora{self._count}.safetensors"
        self._count += 1
        save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
        return path


def sdxl_modules(directory: Path) -> Checkpoint:
    """The demo family with a random UNet of SDXL's list of modules in place of its own."""
    for entry in (ROOT / "export/demo/weights").iterdir():
        if entry.name != "unet":
            (directory / entry.name).symlink_to(entry)
    torch.manual_seed(0)
    UNet2DConditionModel(**SDXL).save_pretrained(directory / "unet")
    return Checkpoint(directory)
