"""What a pipeline has to ask for, as the model `pipelines` tells it. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .controlnets import KnownControlNet
from .json_text import adapter
from .rules import RequestRules
from .schedulers import SCHEDULERS

if TYPE_CHECKING:
    from .loras import LoraDefaults


@dataclass(frozen=True)
class DescribedPipeline:
    """One of a repository's.

    Attributes:
        rules: Defaults and limits of its requests.
        controlnets: That they may name.
        loras: Directory of its catalogue as a repository refers to it; "" for none.
    """

    rules: RequestRules
    controlnets: Mapping[str, KnownControlNet]
    loras: str

    def description(self, loras: Mapping[str, LoraDefaults]) -> dict[str, Any]:
        """What clients are told.

        Args:
            loras: Those of the catalogue.
        """
        rules = self.rules
        return {
            "height": rules.height,
            "width": rules.width,
            "size_multiple": rules.size_multiple,
            "max_size": rules.max_size,
            "steps": rules.steps,
            "max_steps": rules.max_steps,
            "guidance_scale": rules.guidance_scale,
            "max_guidance_scale": rules.max_guidance_scale,
            "max_prompt_characters": rules.max_prompt_characters,
            "scheduler": rules.own_scheduler,
            "schedulers": [
                {"name": name, "sampler": SCHEDULERS[name].sampler, "schedule": SCHEDULERS[name].schedule}
                for name in rules.schedulers
            ],
            "img2img_strength": rules.img2img_strength,
            "inpaint_strength": rules.inpaint_strength,
            "only_inpaints": rules.only_inpaints,
            "max_loras": rules.max_loras,
            "loras": [{"name": name, **_said(defaults)} for name, defaults in sorted(loras.items())],
            "max_controlnets": rules.max_controlnets,
            "controlnets": [
                {"name": name, "control_modes": known.control_modes} for name, known in self.controlnets.items()
            ],
        }


def to_json(pipelines: Mapping[str, DescribedPipeline]) -> str:
    """Pipelines by name as they stand in a repository."""
    return json.dumps({name: asdict(each) for name, each in pipelines.items()}, sort_keys=True)


def from_json(text: str) -> dict[str, DescribedPipeline]:
    """What `to_json` wrote."""
    return adapter(dict[str, DescribedPipeline]).validate_json(text)


def _said(defaults: LoraDefaults) -> dict[str, Any]:
    return {key: value for key, value in asdict(defaults).items() if value is not None}
