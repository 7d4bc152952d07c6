"""LoRA files of every format, with what they add to each weight computed densely, apart from the code under test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class MadeLora:
    """A file's contents and its deltas, float64 [out, in·k], by component and module."""

    tensors: Tensors = field(default_factory=dict)
    deltas: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Writes the file."""
        save_file(self.tensors, path, self.metadata or None)
        return path


class Maker:
    """Random factors, reproducible."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self._random, self._dtype = torch.Generator().manual_seed(seed), dtype

    def tensor(self, *shape: int, size: float = 0.2) -> torch.Tensor:
        """Normally distributed numbers."""
        return (size * torch.randn(shape, generator=self._random)).to(self._dtype)

    def pair(self, shape: tuple[int, ...], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Up and down as files have them: of a convolution [out, r, 1, 1] and [r, in, kh, kw]."""
        out, *rest = shape
        tail = (1, 1) if len(shape) == 4 else ()
        return self.tensor(out, rank, *tail), self.tensor(rank, *rest)


def product(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Up · down in float64."""
    return up.double().flatten(1) @ down.double().flatten(1)


def kohya_name(component: str, module: str, layers_per_block: int | None = None) -> str:
    """Names as sd-scripts writes them; with `layers_per_block`, UNet blocks numbered as in Stability's code (SDXL)."""
    if component == "unet" and layers_per_block is not None:
        module = sgm_name(module, layers_per_block)
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
    if component == "text_encoder" and not module.startswith("text_model."):
        module = f"text_model.{module}"
    return prefix + module.replace(".", "_")


def sgm_name(module: str, layers: int) -> str:
    """A UNet module's name in Stability's layout."""
    outside = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if module in outside:
        return outside[module]
    inner = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module):
        kind, index, rest = match.groups()
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{inner.get(rest, rest)}"
    side, block, kind, index, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", module).groups()
    block, index = int(block), int(index)
    if side == "down":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{inner.get(rest, rest)}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.2.{rest}"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{inner.get(rest, rest)}"


def kohya(
    shapes: Mapping[str, Shapes],
    rank: Callable[[int], int] = lambda number: 4,
    alpha: Callable[[int, int], float | None] = lambda number, rank: rank / 2,
    layers_per_block: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> MadeLora:
    """LoRA and LoCon as kohya writes them.

    Args:
        shapes: Component → module → weight shape: what to adapt.
        rank: Of the n-th module.
        alpha: Of the n-th module with its rank; None for no alpha.
        layers_per_block: As for `kohya_name`.
        seed: Of the factors.
        dtype: Of the factors.
    """
    make, made = Maker(seed, dtype), MadeLora()
    modules = [(component, module) for component, names in shapes.items() for module in names]
    for number, (component, module) in enumerate(modules):
        size = rank(number)
        up, down = make.pair(shapes[component][module], size)
        name = kohya_name(component, module, layers_per_block)
        made.tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        value = alpha(number, size)
        if value is not None:
            made.tensors[f"{name}.alpha"] = torch.tensor(float(value))
        made.deltas[component, module] = product(up, down) * (1.0 if not value else value / size)
    return made


def locon_with_mid(shapes: Shapes, rank: int = 3, alpha: float = 2.0) -> MadeLora:
    """LoCon in Tucker form: 1 × 1 down, a core over the kernel, up."""
    make, made = Maker(5), MadeLora()
    for module, (out, channels, height, width) in shapes.items():
        name = kohya_name("unet", module)
        up, core = make.tensor(out, rank, 1, 1), make.tensor(rank, rank, height, width)
        down = make.tensor(rank, channels, 1, 1)
        made.tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": core}
        made.tensors |= {f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(alpha)}
        weight = torch.einsum("oi,ijhw,jc->ochw", up[..., 0, 0].double(), core.double(), down[..., 0, 0].double())
        made.deltas["unet", module] = weight.flatten(1) * alpha / rank
    return made


def peft(
    shapes: Mapping[str, Shapes],
    prefix: Callable[[str], str] = lambda component: f"{component}.",
    roles: tuple[str, str] = ("lora_A.weight", "lora_B.weight"),
    metadata: Mapping[str, object] | None = None,
    alpha: Callable[[str, int], float] = lambda module, rank: float(rank),
    rank: int = 4,
) -> MadeLora:
    """Files whose modules keep their dots: PEFT, diffusers, raw PEFT dumps, ComfyUI.

    Args:
        shapes: What to adapt.
        prefix: By component.
        roles: Ends of the names of down and up.
        metadata: PEFT's settings, as diffusers writes them.
        alpha: What these settings mean for a module of a rank.
        rank: Of all modules.
    """
    make, made = Maker(7), MadeLora()
    for component, modules in shapes.items():
        for module, shape in modules.items():
            up, down = make.pair(shape, rank)
            name = f"{prefix(component)}{module}"
            made.tensors |= {f"{name}.{roles[0]}": down, f"{name}.{roles[1]}": up}
            made.deltas[component, module] = product(up, down) * alpha(module, rank) / rank
    if metadata is not None:
        made.metadata = {"lora_adapter_metadata": json.dumps(metadata)}
    return made


def loha(shapes: Shapes, tucker: bool = False, rank: int = 3, alpha: float = 3.0) -> MadeLora:
    """LyCORIS LoHa: the elementwise product of two low-rank matrices."""
    make, made = Maker(9), MadeLora()
    for module, shape in shapes.items():
        name = kohya_name("unet", module)
        halves = []
        for number in "12":
            a, b = f"{name}.hada_w{number}_a", f"{name}.hada_w{number}_b"
            if tucker and len(shape) == 4:
                core = make.tensor(rank, rank, *shape[2:])
                wa, wb = make.tensor(rank, shape[0]), make.tensor(rank, shape[1])
                made.tensors |= {f"{name}.hada_t{number}": core, a: wa, b: wb}
                half = torch.einsum("ijhw,jc,io->ochw", core.double(), wb.double(), wa.double()).flatten(1)
            else:
                wa = make.tensor(shape[0], rank, size=0.5)
                wb = make.tensor(rank, torch.Size(shape[1:]).numel(), size=0.5)
                made.tensors |= {a: wa, b: wb}
                half = wa.double() @ wb.double()
            halves.append(half)
        made.tensors[f"{name}.alpha"] = torch.tensor(alpha)
        made.deltas["unet", module] = halves[0] * halves[1] * alpha / rank
    return made


def lokr(shapes: Shapes, left: bool, right: bool, tucker: bool = False, rank: int = 2, alpha: float = 3.0) -> MadeLora:
    """LyCORIS LoKr: a Kronecker product; `left` and `right` say which factor is itself low-rank."""
    make, made = Maker(11), MadeLora()
    for module, (out, channels, *kernel) in shapes.items():
        name = kohya_name("unet", module)
        rows, columns = (2 if out % 2 == 0 else 1), (2 if channels % 2 == 0 else 1)
        if left:
            a, b = make.tensor(rows, rank), make.tensor(rank, columns)
            made.tensors |= {f"{name}.lokr_w1_a": a, f"{name}.lokr_w1_b": b}
            first = a.double() @ b.double()
        else:
            made.tensors[f"{name}.lokr_w1"] = make.tensor(rows, columns)
            first = made.tensors[f"{name}.lokr_w1"].double()
        inner = (out // rows, channels // columns)
        if right and tucker and kernel:
            core = make.tensor(rank, rank, *kernel)
            a, b = make.tensor(rank, inner[0]), make.tensor(rank, inner[1])
            made.tensors |= {f"{name}.lokr_t2": core, f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
            second = torch.einsum("ijhw,ip,jr->prhw", core.double(), a.double(), b.double())
        elif right:
            a, b = make.tensor(inner[0], rank), make.tensor(rank, inner[1] * torch.Size(kernel).numel())
            made.tensors |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
            second = (a.double() @ b.double()).reshape(*inner, *kernel)
        else:
            made.tensors[f"{name}.lokr_w2"] = make.tensor(*inner, *kernel)
            second = made.tensors[f"{name}.lokr_w2"].double()
        made.tensors[f"{name}.alpha"] = torch.tensor(alpha)
        first = first.reshape(rows, columns, *(1 for _ in kernel))
        whole = torch.kron(first, second.contiguous())
        made.deltas["unet", module] = whole.flatten(1) * (alpha / rank if left or right else 1.0)
    return made


def dora(made: MadeLora, weights: Mapping[tuple[str, str], torch.Tensor], kind: str) -> MadeLora:
    """Adds DoRA's magnitudes to a kohya or PEFT file.

    Args:
        made: The file.
        weights: The base model's weights.
        kind: `output` or `input` (LyCORIS, by axis of the norm), or `peft`.
    """
    make = Maker(13)
    for (component, module), low_rank in list(made.deltas.items()):
        base = weights[component, module].double()
        merged = base + low_rank.reshape(base.shape)
        axis = 1 if kind == "input" else 0
        others = [other for other in range(base.ndim) if other != axis]
        norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
        magnitude = (norm * (1 + make.tensor(*norm.shape))).float()
        if kind == "peft":
            stored = magnitude.flatten() if base.ndim == 2 else magnitude.transpose(0, 1)
            made.tensors[f"{component}.{module}.lora_magnitude_vector"] = stored.contiguous()
        else:
            made.tensors[f"{kohya_name(component, module)}.dora_scale"] = magnitude
        made.deltas[component, module] = (magnitude.double() / norm * merged - base).flatten(1)
    return made


def three(shapes: Mapping[str, Shapes]) -> dict[str, MadeLora]:
    """`attention` (kohya, ranks and alphas of its own for each module), `everything` (text encoders too), `loha`."""
    attention = {"unet": {name: shape for name, shape in shapes["unet"].items() if "attn" in name}}
    return {
        "attention": kohya(
            attention, lambda number: number % 3 + 1, lambda number, rank: float(number % 4 + 1), seed=1
        ),
        "everything": kohya(shapes, seed=2),
        "loha": loha(attention["unet"]),
    }
