"""A LoRA of rank 64 on all of SDXL's 722 modules: upload, patch, restore, and graphs after it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Ours, inputs, relative_error
from gpu_timing import compare
from lora_workloads import ROLES

from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora, Group
from swiftdiffusion.python_backends.lora.files.modules import UNET, adaptable_weights, stack_order
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher

UPLOADS = 5
SHARED_MEMORY = "/dev/shm"


def random_lora(unet: torch.nn.Module, rank: int, seed: int) -> CanonicalLora:
    """Factors in float16 on the CPU, stacked as canonical files stack them."""
    weights = {name: weight for name, weight in adaptable_weights(unet).items() if name.endswith(ROLES)}
    random = torch.Generator().manual_seed(seed)
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in stack_order(weights):
        shapes.setdefault(tuple(weights[name].shape), []).append(name)
    groups = []
    for (out, features), names in shapes.items():
        factors = {"up": (len(names), out, rank), "down": (len(names), rank, features)}
        tensors = {name: (0.02 * torch.randn(shape, generator=random)).half() for name, shape in factors.items()}
        groups.append(Group(UNET, "low_rank", tuple(names), (1.0,) * len(names), tensors))
    return CanonicalLora(tuple(groups))


def measure(
    unet: torch.nn.Module, other: torch.nn.Module, rows: int, rank: int, rounds: int, bandwidth: float
) -> dict[str, Any]:
    """Milliseconds of each part, and whether graphs captured before see the patched weights.

    Args:
        unet: Patched in one launch.
        other: Another like it, patched with PyTorch's batched products.
        rows: Of a step.
        rank: Of the LoRAs.
        rounds: Measured turns.
        bandwidth: Of a copy, in bytes per millisecond.
    """
    ours = Ours(unet)
    patcher = ours.running.patcher
    given = ours.given(inputs(unet, rows))
    with torch.inference_mode():
        before = ours.step(given).clone()
    loras = [random_lora(unet, rank, seed) for seed in range(2)]
    patcher.warm_up()
    uploads, prepared = _uploads(loras[0], patcher)
    prepared.append(patcher.prepare(loras[1]))
    sets = {
        "one": [(prepared[0], 0.7)],
        "other": [(prepared[1], 0.5)],
        "two": [(prepared[0], 0.7), (prepared[1], 0.5)],
        "none": [],
    }
    timings = {}
    for on, then in (("one", "none"), ("two", "none")):
        name = f"{on}, then {then}"
        timings[name] = compare({name: lambda a=on, b=then: [patcher.apply(sets[each]) for each in (a, b)]}, rounds)[
            name
        ].median_ms
    stacks = Patcher({UNET: other}, one_launch=False)
    both = {
        "ours": lambda: [patcher.apply(sets[each]) for each in ("one", "other")],
        "torch": lambda: [stacks.apply(sets[each]) for each in ("one", "other")],
    }
    side_by_side = {name: timing.median_ms / 2 for name, timing in compare(both, rounds).items()}
    adapted = [weight for name, weight in adaptable_weights(unet).items() if name.endswith(ROLES)]
    moved = 2 * sum(weight.nbytes for weight in adapted)  # W0 read, W written
    with torch.inference_mode():
        patcher.apply(sets["two"])
        patched = ours.step(given, weights="two").clone()
        eager = ours.eager(given)
        patcher.apply([])
        restored = ours.step(given).clone()
    return {
        "rank": rank,
        "modules": patcher.apply(sets["one"]),
        "megabytes": round(sum(t.nbytes for group in loras[0].groups for t in group.tensors.values()) / 1e6, 1),
        "upload_ms": uploads,
        "two_swaps_ms": timings,
        "swap_ms": side_by_side,
        "share_of_copy_bandwidth": round(moved / side_by_side["ours"] / bandwidth, 3),
        "graph_after_patch_against_eager": relative_error(patched, eager),
        "patch_changes_output_by": relative_error(patched, before),
        "restored_bits": bool(torch.equal(restored, before)),
    }


def _uploads(lora: CanonicalLora, patcher: Patcher) -> tuple[dict[str, list[float]], list[CanonicalLora]]:
    """Milliseconds from a file in shared memory to the GPU, and the LoRA there.

    By way of pinned memory and with packing, as a shard does; and each tensor from where it is mapped.
    """
    device = next(iter(patcher.places.values()))[0].weights.device
    milliseconds: dict[str, list[float]] = {"pinned, and packed": [], "mapped": []}
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as directory:
        path = Path(directory) / "lora.safetensors"
        lora.save(path)
        for _ in range(UPLOADS):
            for name, times in milliseconds.items():
                mapped = CanonicalLora.open(path)
                _synchronize()
                start = time.perf_counter()
                if name == "mapped":
                    kept: object = [tensor.to(device) for group in mapped.groups for tensor in group.tensors.values()]
                else:
                    kept = prepared = [patcher.prepare(mapped)]
                _synchronize()
                times.append(round(1000 * (time.perf_counter() - start), 2))
                del kept
    return {name: sorted(times) for name, times in milliseconds.items()}, prepared


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
