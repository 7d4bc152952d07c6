"""Requests with ControlNets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from wire import PROMPT, Picture, generate


@dataclass(frozen=True)
class Use:
    """A ControlNet of a request, with a picture of its own for each control mode: noise, `side` pixels a side."""

    name: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    seed: int = 0
    side: int = 64
    modes: tuple[int, ...] = ()
    stale: bool = False

    @property
    def images(self) -> list[np.ndarray]:
        """uint8 [side, side, 3] each."""
        shape = (self.side, self.side, 3)
        seeds = range(self.seed, self.seed + max(1, len(self.modes)))
        return [np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in seeds]

    def entry(self, server: Any) -> dict[str, Any]:
        """Its entry of CONTROLNETS."""
        entry = {name: getattr(self, name) for name in ("scale", "start", "end", "guess_mode")}
        entry["name"] = server.controlnet(self.name)
        mode = {"control_mode": self.modes[0] if len(self.modes) == 1 else self.modes} if self.modes else {}
        return entry | mode | ({"stale": True} if self.stale else {})


def pipeline_options(*uses: Use, pictures: str) -> dict[str, Any]:
    """ControlNets as a pipeline of diffusers takes them, whose argument of their pictures is called `pictures`."""
    images = [[Image.fromarray(image) for image in use.images] for use in uses]
    is_union = bool(uses[0].modes)
    lists: dict[str, list[Any]] = {
        "controlnet_conditioning_scale": [use.scale for use in uses],
        "control_guidance_start": [use.start for use in uses],
        "control_guidance_end": [use.end for use in uses],
        pictures: images if is_union else [image for (image,) in images],
    }
    if is_union:
        lists["control_mode"] = [use.modes[0] if len(uses) > 1 else list(use.modes) for use in uses]
    return {name: values if len(uses) > 1 else values[0] for name, values in lists.items()}


def request(server: Any, *uses: Use, **fields: Any) -> Picture:
    """One small picture with ControlNets."""
    given: dict[str, Any] = {"PROMPT": PROMPT, "SEED": 7, "GUIDANCE_SCALE": 5.0, "STEPS": 5, **fields}
    if uses:
        given["CONTROLNETS"] = json.dumps([use.entry(server) for use in uses])
        given["CONTROL_IMAGES"] = np.stack([image for use in uses for image in use.images])[None]
    return generate(server, server.model, **given)
