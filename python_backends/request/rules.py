"""Defaults and limits of a served checkpoint's requests."""

from __future__ import annotations

from dataclasses import dataclass

from .schedulers import SCHEDULERS


@dataclass(frozen=True)
class RequestRules:
    """Defaults and limits of one served checkpoint; sizes in pixels, texts in characters.

    Attributes:
        steps: Steps where the request names none.
        guidance_scale: Guidance where the request names none.
        height: Height where the request names none.
        width: Width where the request names none.
        size_multiple: Heights and widths are multiples of this.
        max_size: Largest height and width.
        own_scheduler: Class of the checkpoint's own scheduler, which SCHEDULER may name too: INFO does.
        own_per_step: Its `Evaluations.per_step`.
        own_more: Its `Evaluations.more`.
        halves: What guidance has the UNet evaluate in a step: both its halves, or 1 where the UNet is distilled for it.
        schedulers: What else SCHEDULER may name.
        max_steps: Most steps.
        max_guidance_scale: Largest guidance.
        max_prompt_characters: Longest PROMPT and NEGATIVE_PROMPT; the tokeniser truncates as in diffusers.
        max_json_bytes: Longest LORAS and CONTROLNETS.
        max_timeout_ms: Longest TIMEOUT_MS.
        max_loras: Most entries of LORAS.
        max_controlnets: Most entries of CONTROLNETS.
        lora_bound: k of bounded asynchronous loading for LoRAs of which neither request nor catalogue says one.
        max_clip_skip: Largest CLIP_SKIP: what the shallowest text encoder has.
        max_prompt_chunks: Most chunks that prompts of the weighted syntax may fill.
        ignored_parameters: Regular expression of request parameters that are let pass, as those are that Triton makes
            of forwarded headers; empty for none.
        slo_ms: What requests without a TIMEOUT_MS are refused beyond, in milliseconds; 0: never.
        slo_factor: The same, in times of what such a request takes alone; 0: never.
        latent_cell: Pixels along a side of a latent's cell.
        img2img_strength: STRENGTH where a request with INIT_IMAGE alone names none.
        inpaint_strength: The same with MASK_IMAGE.
        only_inpaints: Whether the UNet was trained to take picture and mask, and does nothing without.
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    size_multiple: int
    max_size: int
    own_scheduler: str
    own_per_step: int = 1
    own_more: int = 0
    halves: int = 2
    schedulers: tuple[str, ...] = tuple(SCHEDULERS)
    max_steps: int = 200
    max_guidance_scale: float = 50.0
    max_prompt_characters: int = 4096
    max_json_bytes: int = 16384
    max_timeout_ms: int = 3_600_000
    max_loras: int = 16
    max_controlnets: int = 8
    lora_bound: int = 0
    max_clip_skip: int = 0
    max_prompt_chunks: int = 8
    ignored_parameters: str = ""
    slo_ms: int = 0
    slo_factor: float = 0.0
    latent_cell: int = 8
    img2img_strength: float = 0.3
    inpaint_strength: float = 0.9999
    only_inpaints: bool = False

    def __post_init__(self) -> None:
        """Refuses defaults beyond the limits with a ValueError."""
        for name, value, low, high in (
            ("steps", self.steps, 1, self.max_steps),
            ("guidance_scale", self.guidance_scale, 0, self.max_guidance_scale),
            ("height", self.height, self.size_multiple, self.max_size),
            ("width", self.width, self.size_multiple, self.max_size),
            ("lora_bound", self.lora_bound, 0, self.max_steps),
        ):
            if not low <= value <= high:
                raise ValueError(f"the default of {name} is {value:g}; allowed: {low:g} to {high:g}")
