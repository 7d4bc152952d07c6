"""Requests with ControlNets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from wire import PROMPT, Picture, generate


@dataclass(frozen=True)
class Use:
    """A ControlNet of a request, with a picture of its own: noise, `side` pixels high and wide."""

    name: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    seed: int = 0
    side: int = 64

    @property
    def image(self) -> np.ndarray:
        """uint8 [side, side, 3]."""
        return np.random.default_rng(self.seed).integers(0, 256, (self.side, self.side, 3), np.uint8)

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry of CONTROLNETS."""
        return {name: getattr(self, name) for name in ("name", "scale", "start", "end", "guess_mode")}


def request(server: Any, *uses: Use, **fields: Any) -> Picture:
    """One small picture with ControlNets."""
    given: dict[str, Any] = {"PROMPT": PROMPT, "SEED": 7, "GUIDANCE_SCALE": 5.0, "STEPS": 5, **fields}
    if uses:
        given["CONTROLNETS"] = json.dumps([use.entry for use in uses])
        given["CONTROL_IMAGES"] = np.stack([use.image for use in uses])[None]
    return generate(server, server.model, **given)
