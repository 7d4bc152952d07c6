"""At which step a LoRA begins to matter: the bound k of its asynchronous loading.

SwiftDiffusion's rule: latents with and without the LoRA, from the same noise, are compared after every step; k is the
first step after which their cosine similarity is below 0.99. Steps before it may run without the LoRA.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from rich.progress import track

from ...python_backends.lora.files.outside_settings import NO_SETTINGS, OutsideSettings
from ...python_backends.lora.loading.profiles import SUFFIX
from ...python_backends.request.completed import CompletedRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .local_pipeline import LocalPipeline

THRESHOLD = 0.99


@dataclass(frozen=True)
class Profile:
    """A LoRA's curve and what follows from it; `NAME.profile.json` beside the file.

    Attributes:
        bound: k, in steps of `steps`.
        steps: Of the measured runs.
        threshold: Of the similarity.
        similarity: Mean over the prompts after each step.
        lowest: Smallest over the prompts after each step.
        scale: The LoRA's.
        guidance_scale: Of the runs.
        prompts: What was drawn.
        sha256: Of the LoRA file.
    """

    bound: int
    steps: int
    threshold: float
    similarity: tuple[float, ...]
    lowest: tuple[float, ...]
    scale: float
    guidance_scale: float
    prompts: tuple[str, ...]
    sha256: str

    def save(self, lora: Path) -> Path:
        """Writes the profile beside the LoRA's file, where the catalogue finds it."""
        path = lora.with_name(lora.name.removesuffix(".safetensors") + SUFFIX)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")
        return path

    def draw(self, path: Path, title: str) -> None:
        """Draws the curve as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        counted = range(1, self.steps + 1)
        axes.fill_between(counted, self.lowest, self.similarity, alpha=0.25, label="down to the lowest prompt")
        axes.plot(counted, self.similarity, marker="o", markersize=3, label="mean over prompts")
        axes.axhline(self.threshold, color="grey", linestyle="--", linewidth=1, label=f"{self.threshold:g}")
        axes.axvline(self.bound, color="tab:red", linewidth=1, label=f"bound k = {self.bound}")
        axes.set(xlabel="steps done", ylabel="cosine similarity of latents", title=title)
        axes.legend(fontsize="small")
        figure.savefig(path, dpi=150)


def profile_lora(
    pipeline: LocalPipeline,
    file: Path,
    requests: Sequence[CompletedRequest],
    scale: float = 1.0,
    threshold: float = THRESHOLD,
    outside: OutsideSettings = NO_SETTINGS,
) -> Profile:
    """Measures one LoRA.

    Args:
        pipeline: Of the checkpoint.
        file: The LoRA.
        requests: What to draw, without LoRAs; all of as many steps.
        scale: The LoRA's.
        threshold: Similarity below which the LoRA matters.
        outside: What is said of the LoRA outside its file.

    Raises:
        InvalidRequestError: If the file is not a LoRA of the checkpoint.
    """
    loras = pipeline.add_lora(file, scale, outside)
    curves = [_similarities(pipeline, request, loras) for request in track(requests, f"{file.stem}: prompts")]
    similarity = torch.tensor(curves)
    mean = similarity.mean(0)
    below = (mean < threshold).nonzero()
    steps = similarity.shape[1]
    return Profile(
        bound=int(below[0]) if len(below) else steps - 1,
        steps=steps,
        threshold=threshold,
        similarity=_rounded(mean),
        lowest=_rounded(similarity.min(0).values),
        scale=scale,
        guidance_scale=requests[0].guidance_scale,
        prompts=tuple(request.prompt for request in requests),
        sha256=loras[0][0],
    )


def _similarities(
    pipeline: LocalPipeline, request: CompletedRequest, loras: tuple[tuple[str, float], ...]
) -> list[float]:
    """Cosine similarity after each step of one request."""
    without, with_lora = pipeline.start([request]), pipeline.start([request], loras)
    latents: list[list[torch.Tensor]] = []
    for runs, resident in ((without, ()), (with_lora, loras)):
        taken = []
        while not runs[0].done:
            pipeline.step(runs, resident)
            taken.append(runs[0].latents.flatten())
        latents.append(taken)
    return [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(*latents, strict=True)]


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
