"""The sampler's step of a batch: runs whose samplers are affine all in one call, others one by one."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from ...kernels.cfg_step import cfg_step
from .guidance import CONDITIONAL, UNCONDITIONAL

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from .run import Denoising


def groups(runs: Iterable[Denoising]) -> list[list[Denoising]]:
    """Runs that can be advanced together: those with an affine step, by the shape of their latents."""
    found: dict[Hashable, list[Denoising]] = defaultdict(list)
    for run in runs:
        found[run if run.affine_step is None else run.latents.shape].append(run)
    return list(found.values())


def advance(runs: Iterable[Denoising], predictions: Mapping[Denoising, dict[int, torch.Tensor]]) -> None:
    """Guidance and sampler step of one of the `groups`: for every run, bit for bit, what its own `advance` does.

    Args:
        runs: Of one group; their samplers, steps and guidance may differ.
        predictions: Run → half → [1, C, h, w], for every one of its `halves`.
    """
    runs = sorted(runs, key=lambda run: UNCONDITIONAL not in run.halves)  # those with guidance first
    steps = [step for run in runs if (step := run.affine_step) is not None]
    if not steps:
        for run in runs:
            run.advance(predictions[run])
        return
    device = runs[0].latents.device

    unconditional = [predictions[run][UNCONDITIONAL].to(device) for run in runs if UNCONDITIONAL in run.halves]
    rows = [step.row(run.request.guidance_scale) for run, step in zip(runs, steps, strict=True)]
    has_memory = any(step.along_previous for step in steps)
    latents, denoised = cfg_step(
        torch.cat([run.latents for run in runs]),
        torch.cat([predictions[run][CONDITIONAL].to(device) for run in runs]),
        torch.tensor(rows).to(device, non_blocking=True),
        torch.cat(unconditional) if unconditional else None,
        torch.cat([run.sampler.denoised for run in runs]) if has_memory else None,
    )
    for run, *after in zip(runs, latents.split(1), denoised.split(1), strict=True):
        run.sampler.take(run.step, *after)
        run.step += 1
