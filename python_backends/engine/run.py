"""One request between its first and its last denoising step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..common.errors import InvalidRequestError, RequestError
from ..common.sentences import first_sentence
from ..networks.digests import tensors_digest
from ..request.completed import StepHistory
from ..request.encoding import Encoding
from .guidance import CONDITIONAL, UNCONDITIONAL, guidance_embedding, rescaled
from .request_loras import RequestLoras
from .run_report import RunReport
from .schedulers import Sampler
from .template_listing import OF_A_NAME
from .template_store import Company
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...kernels.step_coefficients import StepCoefficients
    from ..common.errors import ControlNetDownError
    from ..lora.files.lora_set import LoraSet
    from ..networks.kept_embeddings import Embeddings
    from ..request.completed import CompletedRequest, ControlNetUse
    from .starts import Start
    from .token_rows import TokenRow
    from .token_runs import TokenRun

CPU = torch.device("cpu")
NO_ENCODING = Encoding(None, "", 0.0, False)
AGAIN_S = 0.25
"""A run that waits for a ControlNet that is down looks so often whether it is there again."""


@dataclass(frozen=True)
class LatentGeometry:
    """Shapes that a checkpoint gives its latents, and the embeddings that its UNet takes beside the prompt's.

    Attributes:
        channels: Latent channels.
        scale_factor: Pixels per latent cell.
        guidance_embedding_width: Width of a guidance-distilled UNet's guidance embedding, else None.
    """

    channels: int
    scale_factor: int
    guidance_embedding_width: int | None = None


class Denoising:
    """State of one request: latents, sampler, conditioning, in float32 where its UNet is; the generator on the CPU.

    It repeats what diffusers' pipelines do around the UNet: initial noise, `scale_model_input`, guidance, `step`.

    Attributes:
        request: The request.
        conditioning: What the UNet takes beside latents and timestep; a row per half: ENCODER_HIDDEN_STATES
            [2, tokens, width], on the CPU (`KeptPrompts` takes it once), for SDXL TEXT_EMBEDS [2, pooled width] and
            TIME_IDS [2, 6], for guidance-distilled UNets TIMESTEP_COND [2, guidance embedding width].
        step: Number of steps done.
        sampler: Its latents, and how they go on.
        report: What INFO will tell of the run.
        loras: Which of its LoRAs are on.
        waiting: Whether its next step waits for a LoRA, or for a ControlNet that is down.
        failure: Why it ends without a picture, once it does.
        work: What all of it costs.
        scheduler: Its name of the contract, or the class of the checkpoint's own.
        token_run: Of a mask-aware request, else None.
    """

    def __init__(
        self,
        request: CompletedRequest,
        scheduler_config: Mapping[str, Any],
        geometry: LatentGeometry,
        embeddings: Embeddings,
        encoding: Encoding = NO_ENCODING,
        loras: RequestLoras | None = None,
        device: torch.device = CPU,
        start: Start | None = None,
    ) -> None:
        """Draws the initial latents.

        Args:
            request: The completed request.
            scheduler_config: `Checkpoint.scheduler_config`.
            geometry: The checkpoint's latents.
            embeddings: Of negative prompt and prompt.
            encoding: The text encoder's report.
            loras: The request's LoRAs.
            device: Where latents and conditioning are kept: where the UNet is.
            start: The picture that the request begins with, if it does.

        Raises:
            InvalidRequestError: If the scheduler does not take so many steps (LCM bounds them by its distillation), or
                a LoRA's patch step is beyond the run.
        """
        self.request = request
        height, width = request.height // geometry.scale_factor, request.width // geometry.scale_factor
        try:
            self.sampler = Sampler(
                scheduler_config,
                request.scheduler,
                steps=request.steps,
                seed=request.seed,
                shape=(1, geometry.channels, height, width),
                of_sdxl=embeddings[1] is not None,
                device=device,
                start=start,
            )
        except ValueError as error:
            raise InvalidRequestError(
                f"STEPS is {request.steps}; not allowed by the scheduler: {first_sentence(error)}"
            ) from None
        self._device = device
        self.conditioning: dict[str, torch.Tensor] = {}
        self.set_embeddings(embeddings)
        if embeddings[1] is not None:
            size = (request.height, request.width)
            time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
            self.conditioning["TIME_IDS"] = time_ids.repeat(2, 1).to(device)
        distilled = geometry.guidance_embedding_width
        if distilled is not None:
            embedding = guidance_embedding(request.guidance_scale, distilled)
            self.conditioning["TIMESTEP_COND"] = embedding.repeat(2, 1).to(device)
        self._guided = request.guidance_scale > 1 and distilled is None
        self.step = 0
        self.loras = RequestLoras((), (), None) if loras is None else loras
        self.loras.check_patch_steps(self.steps)
        self.waiting = False
        self._again_at = 0.0
        self._lacked = (-1, "")
        self.failure: RequestError | None = None
        self.report = RunReport(encoding)
        self.token_run: TokenRun | None = None
        self._rows: dict[tuple[int, LoraSet], dict[int, TokenRow | None]] = {}
        self.work = Work.of(replace(request, evaluations=self.steps, halves=len(self.halves)))
        self.scheduler = request.scheduler or scheduler_config["_class_name"]

    def set_embeddings(self, embeddings: Embeddings) -> None:
        """Conditions the steps to come on these."""
        self._digests: dict[int, str] = {}
        self.conditioning["ENCODER_HIDDEN_STATES"] = embeddings[0]
        if embeddings[1] is not None:
            self.conditioning["TEXT_EMBEDS"] = embeddings[1].to(self._device)

    def put_on_loras(self) -> None:
        """At a step boundary: puts on the LoRAs that are ready, and says in `waiting` whether one is overdue.

        Raises:
            RequestError: If one cannot be loaded.
        """
        may_step, embeddings = self.loras.advance(self.step, self.steps)
        self.waiting = not may_step or time.monotonic() < self._again_at
        if embeddings is not None:
            self.set_embeddings(embeddings)

    def controls(self, half: int) -> tuple[ControlNetUse, ...]:
        """The ControlNets that a half of the current step uses; the unconditional half none that is in guess mode."""
        return tuple(
            self._of_step(use, half, position)
            for position, use in enumerate(self.request.controlnets)
            if use.is_active(self.step, self.steps) and (half == CONDITIONAL or not use.guess_mode)
        )

    @property
    def is_mask_aware(self) -> bool:
        """Whether its shard keeps what its tokens were."""
        return self.token_run is not None and not self.token_run.computes_all

    @property
    def home_first(self) -> tuple[int, ...]:
        """Its halves, first the one to evaluate here if the other goes elsewhere: it is then kept as an entry."""
        if self.token_run is None:
            return self.halves
        lacking = [half for half in self.halves if (row := self.tokens(half)) is not None and row.name is not None]
        first = self.token_run.half_to_keep(self.step, {half: self._company(half) for half in lacking})
        return tuple(sorted(self.halves, key=lambda half: half != first))

    def tokens(self, half: int) -> TokenRow | None:
        """What is kept of a half's transformers, or masked in them, in the current step; None for nothing."""
        if self.token_run is None:
            return None
        at = self.step, self.loras.current
        if at not in self._rows:
            companies = {each: self._company(each) for each in self.halves}
            self._rows[at] = self.token_run.rows(self.step, companies, self._company_until)
        return self._rows[at][half]

    def _company_until(self) -> int:
        """The first later step that is in other company, as far as ControlNets' windows and LoRAs' bounds tell."""
        scales = [
            tuple(use.scale_at(step, self.steps) for use in self.request.controlnets) for step in range(self.steps)
        ]
        others = (step for step in range(self.step + 1, self.steps) if scales[step] != scales[self.step])
        return min(next(others, self.steps), self.loras.next_change(self.step, self.steps))

    def look_again(self) -> None:
        """A step begins, or is taken again: what is known of its tokens may have changed."""
        self._rows.clear()

    def _company(self, half: int) -> Company:
        if half not in self._digests:
            given = tensors_digest(*(tensor[half] for tensor in self.conditioning.values()))
            self._digests[half] = given[:OF_A_NAME]
        controls = tuple(replace(use, start=0.0, end=1.0, history=None) for use in self.controls(half))
        return Company(self.loras.current, controls, self._digests[half])

    def close(self) -> None:
        """Gives back what it holds."""
        if self.token_run is not None:
            self.token_run.close()
        self.loras.close()

    @property
    def lacks(self) -> str:
        """What its next step waits for because that is down, in a sentence; "" while there is nothing."""
        step, sentence = self._lacked
        return sentence if step == self.step else ""

    def put_off(self, error: ControlNetDownError) -> None:
        """Its step was in vain, since a ControlNet is down: it is taken again in a moment."""
        self._again_at, self._lacked = time.monotonic() + AGAIN_S, (self.step, str(error))

    def note_stale(self, uses: Sequence[ControlNetUse], positions: Sequence[int]) -> None:
        """Notes those of a row's ControlNets whose residuals were the previous step's."""
        for position in positions:
            history = uses[position].history
            if history is not None:
                self.report.stale[history.position] += 1

    def _of_step(self, use: ControlNetUse, half: int, position: int) -> ControlNetUse:
        if use.scales_pictures:
            use = replace(use, scale=use.scale_at(self.step, self.steps))
        if use.stale:
            is_last = not use.is_active(self.step + 1, self.steps)
            history = StepHistory(self.request.run_id, half, position, self.step, is_last)
            use = replace(use, history=history)
        return use

    @property
    def halves(self) -> tuple[int, ...]:
        """Rows of the conditioning that have to be run."""
        return (UNCONDITIONAL, CONDITIONAL) if self._guided else (CONDITIONAL,)

    @property
    def steps(self) -> int:
        """UNet evaluations to the picture: some samplers take more than the request's `steps`, edits fewer."""
        return len(self.sampler.timesteps)

    @property
    def timesteps(self) -> list[float]:
        """Of its steps."""
        return [float(each) for each in self.sampler.timesteps]

    @property
    def affine_step(self) -> StepCoefficients | None:
        """The current step, if guidance and sampler are no more than what `cfg_step` does."""
        if self.sampler.coefficients is None or (self._guided and self.request.guidance_rescale != 0):
            return None
        return self.sampler.coefficients[self.step]

    @property
    def latents(self) -> torch.Tensor:
        """[1, C, h, w]."""
        return self.sampler.latents

    @property
    def done(self) -> bool:
        """Whether the latents are final."""
        return self.step == self.steps

    def model_input(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [1, C, h, w] as the UNet takes them, and timestep [1, 1] of the current step, float32. Once per step.

        Scaled; for UNets that inpaint, with mask and masked picture's latents.
        """
        timestep = self.sampler.timesteps[self.step]
        return self.sampler.model_input(self.step), timestep.reshape(1, 1).float()

    def advance(self, noise_predictions: dict[int, torch.Tensor]) -> None:
        """Guidance and sampler step.

        Args:
            noise_predictions: Half → [1, C, h, w], for every one of `halves`.
        """
        prediction = noise_predictions[CONDITIONAL].to(self._device)
        if self._guided:
            unconditional = noise_predictions[UNCONDITIONAL].to(self._device)
            guided = unconditional + self.request.guidance_scale * (prediction - unconditional)
            prediction = rescaled(guided, prediction, self.request.guidance_rescale)
        self.sampler.advance(self.step, prediction)
        self.step += 1
