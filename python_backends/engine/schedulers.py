"""A request's sampler: diffusers' scheduler, called as diffusers' pipelines call it, or its coefficients."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from ...kernels.cfg_step import cfg_step
from ...kernels.step_coefficients import NotAffineError, run_coefficients
from ..common.sentences import first_sentence
from ..request.schedulers import SCHEDULERS, Evaluations
from .starts import Drawn, Pins, noise_levels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin

    from ...kernels.step_coefficients import StepCoefficients
    from .starts import Start

NOISE_SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""What of a configuration says how much noise there is at a timestep, whatever the sampler."""

TRIAL_STEPS = 4
COUNTED_STEPS = 4, 5


class SchedulerError(ValueError):
    """A checkpoint's own scheduler cannot be served; the message says why."""


class Sampler:
    """One run of a scheduler, which repeats what the pipelines' `__call__` does with theirs, and in which order.

    Attributes:
        latents: [1, C, h, w], float32.
        timesteps: Of the UNet's evaluations, scalars on the CPU; some schedulers make more of them than steps.
        order: Evaluations per step.
        coefficients: Of every evaluation, in the scheduler's place; None for samplers that are not affine.
        beside: As of `Drawn`, where the latents are.
        denoised: What `cfg_step` gave in the last step beside the latents, like them; unused before, and by samplers
            that are not affine.
    """

    def __init__(
        self,
        own_config: Mapping[str, Any],
        name: str | None,
        *,
        steps: int,
        seed: int,
        shape: tuple[int, ...],
        of_sdxl: bool,
        device: torch.device | None = None,
        start: Start | None = None,
    ) -> None:
        """Draws the initial latents: on the CPU, so that they are the same wherever they go.

        Args:
            own_config: `Checkpoint.scheduler_config`.
            name: A key of SCHEDULERS; None for the checkpoint's own scheduler.
            steps: Asked for.
            seed: Of the generator that all noise is drawn from.
            shape: [1, C, h, w] of the latents.
            of_sdxl: Whether as in SDXL's pipeline, else as in Stable Diffusion's.
            device: Where the latents go; None for the CPU. The scheduler's own tables stay on the CPU, so that no step
                waits for the device.
            start: The picture that it begins with; None for noise alone.

        Raises:
            InvalidRequestError: If the scheduler cannot begin with a picture.
            ValueError: If it does not take so many steps.
        """
        self._scheduler = scheduler = _make(own_config, name)
        self._scales = of_sdxl or hasattr(scheduler, "scale_model_input")
        scheduler.set_timesteps(steps, device="cpu")
        self.order = int(scheduler.order)  # which the pipelines read: they run none that lacks it
        begin = 0 if start is None else start.skipped * self.order
        self.timesteps = list(scheduler.timesteps)[begin:]
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = Drawn(start, shape, generator)
        self.beside = None if drawn.beside is None else drawn.beside.to(device)
        given = {"eta": 0.0 if name is None else SCHEDULERS[name].eta, "generator": generator}
        taken = inspect.signature(scheduler.step).parameters
        self._output: Any = None
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._options = {key: value for key, value in given.items() if key in taken}
        if of_sdxl and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        self._pins: Pins | None = None
        if start is None:
            latents = drawn.noise * scheduler.init_noise_sigma
        else:
            latents = self._begin(start, drawn, begin, device)
        self.latents = self.denoised = latents.to(device)
        self.coefficients: tuple[StepCoefficients, ...] | None
        try:
            self.coefficients = run_coefficients(scheduler, begin)
        except NotAffineError:
            self.coefficients = None

    def _begin(self, start: Start, drawn: Drawn, begin: int, device: torch.device | None) -> torch.Tensor:
        """The first latents of a run that begins with a picture."""
        (of_picture, of_noise), *later = noise_levels(self._scheduler, begin)
        if drawn.original is not None and start.mask is not None and drawn.beside is None:
            self._pins = Pins(drawn.original, drawn.noise, start.mask, later, device)
        if drawn.original is None or start.from_noise:
            return drawn.noise * self._scheduler.init_noise_sigma
        return of_picture * drawn.original + of_noise * drawn.noise

    def model_input(self, step: int) -> torch.Tensor:
        """What the UNet takes for latents in a step, [1, C, h, w]; once per step, before `advance`."""
        scaled = self._scaled(step)
        return scaled if self.beside is None else torch.cat([scaled, self.beside], 1)

    def _scaled(self, step: int) -> torch.Tensor:
        if self.coefficients is not None:
            divisor = self.coefficients[step].input_divisor
            return self.latents if divisor == 1 else self.latents / divisor
        return self._scheduler.scale_model_input(self.latents, self.timesteps[step]) if self._scales else self.latents

    def advance(self, step: int, prediction: torch.Tensor) -> None:
        """The latents after a step for which the UNet said [1, C, h, w]."""
        if self.coefficients is not None:
            row = torch.tensor([self.coefficients[step].row(1.0)]).to(self.latents.device, non_blocking=True)
            self.take(step, *cfg_step(self.latents, prediction, row, None, self.denoised))
            return
        self._last = prediction, self.timesteps[step], self.latents
        self._output = self._scheduler.step(prediction, self.timesteps[step], self.latents, **self._options)
        self.take(step, self._output.prev_sample, self.denoised)

    def take(self, step: int, latents: torch.Tensor, denoised: torch.Tensor) -> None:
        """Goes on from a step with what it gave, [1, C, h, w] each."""
        self.latents = latents if self._pins is None else self._pins(step, latents)
        self.denoised = denoised

    def predicted(self) -> torch.Tensor:
        """The latents that the last step's prediction implies for the end of the run (x0), [1, C, h, w] float32.

        For previews alone: where neither scheduler nor betas tell of them, they are the noisy ones at unit deviation.
        """
        if self.coefficients is not None:
            return self.denoised
        for name in ("pred_original_sample", "denoised"):  # LCM's is called `denoised`
            found = getattr(self._output, name, None)
            if found is not None:
                return found
        outputs = [each for each in getattr(self._scheduler, "model_outputs", ()) if each is not None]
        if outputs and _keeps_x0(self._scheduler.config):
            return outputs[-1]
        x0 = None if self._last is None else _x0(self._scheduler, *self._last)
        return self.latents / max(1.0, float(self.latents.std())) if x0 is None else x0


def _x0(
    scheduler: SchedulerMixin, prediction: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor | None:
    """What a prediction says of the end of the run, if latents have unit variance all the way; else None."""
    kept, kind = getattr(scheduler, "alphas_cumprod", None), scheduler.config.get("prediction_type")
    if kept is None or float(scheduler.init_noise_sigma) != 1 or not 0 <= int(timestep) < len(kept):
        return None
    signal, noise = float(kept[int(timestep)]) ** 0.5, float(1 - kept[int(timestep)]) ** 0.5
    if kind == "epsilon" and signal > 0:
        return (sample - noise * prediction) / signal
    return signal * sample - noise * prediction if kind == "v_prediction" else None


def _keeps_x0(config: Mapping[str, Any]) -> bool:
    """Whether what a multistep scheduler keeps of its steps are x0."""
    return "++" in config.get("algorithm_type", "") or bool(config.get("predict_x0"))


def schedulers_for(own_config: Mapping[str, Any], of_sdxl: bool) -> tuple[str, ...]:
    """Names that requests may ask a checkpoint for, once its own scheduler is tried.

    Names stand for samplers over a discrete schedule of betas: they are none for networks that were trained for another
    (EDM's preconditioning, flow matching, continuous timesteps), to which diffusers would give default betas.

    Args:
        own_config: `Checkpoint.scheduler_config`.
        of_sdxl: Whether the checkpoint's pipeline is SDXL's.

    Raises:
        SchedulerError: If the own one lacks a library, is none that the pipeline can run, or does not repeat by seed.
    """
    reason = _refusal(own_config, None, of_sdxl)
    if reason is not None:
        raise SchedulerError(f"its scheduler {own_config['_class_name']} {reason}")
    if not is_over_betas(own_config):
        return ()
    return tuple(name for name in SCHEDULERS if _refusal(own_config, name, of_sdxl) is None)


def evaluations_of(own_config: Mapping[str, Any]) -> Evaluations:
    """Those of a checkpoint's own scheduler, once that is known to be served; of very short runs there may be fewer."""
    scheduler, counts = _make(own_config, None), []
    for steps in COUNTED_STEPS:
        scheduler.set_timesteps(steps, device="cpu")
        counts.append(len(scheduler.timesteps))
    per_step = counts[1] - counts[0]
    return Evaluations(per_step, counts[0] - per_step * COUNTED_STEPS[0])


def _make(own_config: Mapping[str, Any], name: str | None) -> SchedulerMixin:
    import diffusers

    if name is not None:
        named = SCHEDULERS[name]
        return getattr(diffusers, named.class_name).from_config(dict(own_config), **named.changes)
    # Every value as it stands: `from_config` would take the class's own for those that the checkpoint's file lacks,
    # some of which the pipeline has put right.
    explicit = {key: value for key, value in own_config.items() if key != "_use_default_values"}
    return _own_class(own_config).from_config(explicit)


def _own_class(own_config: Mapping[str, Any]) -> type[SchedulerMixin]:
    import diffusers

    return getattr(diffusers, own_config["_class_name"])


def is_over_betas(own_config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's network was trained for a discrete schedule of betas."""
    flow = own_config.get("use_flow_sigmas") or own_config.get("prediction_type") == "flow_prediction"
    continuous = own_config.get("timestep_type") == "continuous"
    takes = inspect.signature(_own_class(own_config).__init__).parameters
    return "beta_schedule" in takes and not flow and not continuous


def _refusal(own_config: Mapping[str, Any], name: str | None, of_sdxl: bool) -> str | None:
    """Why a scheduler cannot be served, after two runs of one seed; None if it can."""
    try:
        first, second = (_trial(own_config, name, of_sdxl) for _ in range(2))
    except ImportError as error:
        return f"lacks a library: {first_sentence(error)}"
    except Exception as error:  # noqa: BLE001  schedulers of other pipelines raise what they like
        return f"cannot be run by diffusers' pipeline: {first_sentence(error)}"
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        return "draws other noise each time, whatever the seed"
    return None


def _trial(own_config: Mapping[str, Any], name: str | None, of_sdxl: bool) -> torch.Tensor:
    sampler = Sampler(own_config, name, steps=TRIAL_STEPS, seed=0, shape=(1, 4, 2, 2), of_sdxl=of_sdxl)
    for step in range(len(sampler.timesteps)):
        sampler.advance(step, torch.tanh(sampler.model_input(step)))
    return sampler.latents
