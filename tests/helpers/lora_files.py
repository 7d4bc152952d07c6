"""LoRA files of every format, with what they add to each weight computed densely, apart from the code under test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.modules import adaptable_vectors, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher

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


def kohya_name(
    component: str, module: str, layers_per_block: int | None = None, modules: Collection[str] | None = None
) -> str:
    """Names as sd-scripts writes them; with `layers_per_block`, UNet blocks numbered as in Stability's code (SDXL)."""
    if component == "unet" and layers_per_block is not None:
        module = sgm_name(module, layers_per_block, modules)
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
    if component == "text_encoder" and not module.startswith("text_model."):
        module = f"text_model.{module}"
    return prefix + module.replace(".", "_")


def sgm_name(module: str, layers: int, modules: Collection[str] | None = None) -> str:
    """A UNet module's name in Stability's layout.

    Args:
        module: By its name in diffusers.
        layers: Of each block.
        modules: All of the UNet's; None if each of its up blocks has attentions, before its upsampler.
    """
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
        attends = modules is None or any(name.startswith(f"up_blocks.{block}.attentions.") for name in modules)
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
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
        name = kohya_name(component, module, layers_per_block, shapes[component])
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


def differences(
    shapes: Mapping[str, Shapes],
    vectors: Mapping[str, Shapes],
    name: Callable[[str, str], str] = kohya_name,
    norm_roles: tuple[str, str] = ("w_norm", "b_norm"),
) -> MadeLora:
    """LyCORIS' full differences of weights, and of norms and biases.

    Args:
        shapes: Component → module → weight shape.
        vectors: Component → norm, or module with `.bias` → shape.
        name: Of a component's module.
        norm_roles: What weights and biases of norms are called.
    """
    make, made = Maker(15), MadeLora()
    for component, modules in shapes.items():
        for module, shape in modules.items():
            made.tensors[f"{name(component, module)}.diff"] = change = make.tensor(*shape)
            made.deltas[component, module] = change.double().flatten(1)
    for component, named in vectors.items():
        for vector, shape in named.items():
            module, is_bias = vector.removesuffix(".bias"), vector.endswith(".bias")
            role = "diff_b" if module in shapes.get(component, {}) else norm_roles[is_bias]
            made.tensors[f"{name(component, module)}.{role}"] = change = make.tensor(*shape)
            made.deltas[component, vector] = change.double()[:, None]
    return made


def glora(weights: Mapping[str, torch.Tensor], rank: int = 3, alpha: float = 2.0) -> MadeLora:
    """LyCORIS GLoRA: W0 · A + B, both of low rank; A over the input channels."""
    make, made = Maker(17), MadeLora()
    for module, weight in weights.items():
        out, channels, *kernel = weight.shape
        one = [1] * len(kernel)
        a1, a2 = make.tensor(channels, rank, *one), make.tensor(rank, channels, *one)
        b1, b2 = make.tensor(out, rank, *one), make.tensor(rank, channels, *kernel)
        factors = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
        name = kohya_name("unet", module)
        made.tensors |= {f"{name}.{role}.weight": factor for role, factor in factors.items()}
        made.tensors[f"{name}.alpha"] = torch.tensor(alpha)
        mixed = torch.einsum("oi...,ij->oj...", weight.double(), product(a1, a2))
        made.deltas["unet", module] = (mixed.flatten(1) + product(b1, b2)) * alpha / rank
    return made


def ia3(weights: Mapping[str, torch.Tensor], by_input: bool) -> MadeLora:
    """LyCORIS IA3: each output, or each input channel, times 1 + weight."""
    make, made = Maker(19), MadeLora()
    for module, weight in weights.items():
        axis = int(by_input)
        shape = [1] * weight.ndim
        shape[axis] = -1
        change = make.tensor(weight.shape[axis])
        name = kohya_name("unet", module)
        stored = change if weight.ndim == 2 else change.reshape(1, -1, 1, 1)
        made.tensors |= {f"{name}.weight": stored, f"{name}.on_input": torch.tensor(axis)}
        made.deltas["unet", module] = (weight.double() * change.double().reshape(shape)).flatten(1)
    return made


def oft(
    weights: Mapping[str, torch.Tensor], stages: int = 0, constraint: float = 0.0, rescaled: bool = False
) -> MadeLora:
    """LyCORIS OFT, or BOFT of so many stages: rotations of the outputs, by whole matrices."""
    make, made = Maker(21), MadeLora()
    for module, weight in weights.items():
        out, size = len(weight), 4
        stored = make.tensor(*([stages] if stages else []), out // size, size, size, size=0.4)
        skew = stored.double() - stored.double().mT
        norm, most = skew.square().sum().sqrt(), constraint * out
        skew = skew * (most / norm) if 0 < most < norm else skew
        turn = torch.linalg.solve(torch.eye(size) - skew, torch.eye(size) + skew)  # the two commute
        flat = merged = weight.double().flatten(1)
        if not stages:
            merged = torch.block_diag(*turn).T @ flat
        for stage in range(stages):
            order = torch.arange(out).reshape(-1, 2, 2**stage * size // 2).mT.flatten()
            shuffle = torch.eye(out, dtype=torch.float64)[order]
            merged = shuffle.T @ torch.block_diag(*turn[stage]) @ shuffle @ merged
        name = kohya_name("unet", module)
        made.tensors |= {f"{name}.oft_blocks": stored, f"{name}.alpha": torch.tensor(constraint)}
        if rescaled:
            scale = 1 + make.tensor(out)
            made.tensors[f"{name}.rescale"] = scale.reshape(-1, *[1] * (weight.ndim - 1))
            merged = scale.double()[:, None] * merged
        made.deltas["unet", module] = merged - flat
    return made


def adaptable(parts: Mapping[str, torch.nn.Module]) -> dict[tuple[str, str], torch.Tensor]:
    """All that LoRAs may change of models."""
    return {
        (part, name): tensor
        for part, model in parts.items()
        for name, tensor in (adaptable_weights(model) | adaptable_vectors(model)).items()
    }


def check_patched(
    parts: Mapping[str, torch.nn.Module], lora: CanonicalLora, made: MadeLora, scale: float = 0.7, error: float = 1e-6
) -> None:
    """Patched in, a LoRA adds what it should to everything, and goes again."""
    before = {name: tensor.detach().clone() for name, tensor in adaptable(parts).items()}
    patcher = Patcher(parts)
    modules = {(part, name.removesuffix(".bias")) for part, name in made.deltas}
    assert patcher.apply([(lora, scale)]) == len(modules) == sum(lora.modules.values())
    for name, tensor in adaptable(parts).items():
        wanted = before[name].double()
        if name in made.deltas:
            wanted = wanted + scale * made.deltas[name].reshape(wanted.shape)
        assert torch.allclose(tensor.double(), wanted, rtol=1e-5, atol=error), name
    patcher.apply([])
    assert all(torch.equal(tensor, before[name]) for name, tensor in adaptable(parts).items())


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
