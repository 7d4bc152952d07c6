"""Runs advanced together: each as it is alone, and as diffusers' scheduler advances it, bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import diffusers
import pytest
import torch

from swiftdiffusion.python_backends.engine import advancing
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

AFFINE = {"euler", "euler_trailing", "ddim", "ddim_trailing", "dpmpp_2m", "dpmpp_2m_karras"}
SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
ZERO_SNR = SDXL | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
STEPS = (1, 4, 9, 20, 50)


def make(
    name: str | None,
    steps: int = 4,
    guidance: float = 5.1,
    height: int = 6,
    width: int = 5,
    *,
    config: Mapping[str, Any] = SDXL,
    of_sdxl: bool = True,
    rescale: float = 0.0,
) -> Denoising:
    request = CompletedRequest("run", "", None, 7, steps, guidance, height, width, name, guidance_rescale=rescale)
    return Denoising(
        request, config, LatentGeometry(4, 1), (torch.zeros(2, 3, 8), torch.zeros(2, 8) if of_sdxl else None)
    )


def network(sample: torch.Tensor, timestep: torch.Tensor, half: int) -> torch.Tensor:
    return torch.tanh(sample * (0.9 + 0.2 * half) + torch.sin(timestep.float() / 100))


def together(runs: Iterable[Denoising]) -> None:
    """A step of each."""
    predictions = {}
    for run in runs:
        sample, timestep = run.model_input()
        predictions[run] = {half: network(sample, timestep, half) for half in run.halves}
    for group in advancing.groups(predictions):
        advancing.advance(group, predictions)


def alone(run: Denoising) -> torch.Tensor:
    while not run.done:
        sample, timestep = run.model_input()
        run.advance({half: network(sample, timestep, half) for half in run.halves})
    return run.latents


def theirs(name: str, steps: int, guidance: float, config: Mapping[str, Any], of_sdxl: bool) -> torch.Tensor:
    """The loop of diffusers' pipelines."""
    named = SCHEDULERS[name]
    scheduler = getattr(diffusers, named.class_name).from_config(dict(config), **named.changes)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(1, 4, 6, 5, generator=generator) * scheduler.init_noise_sigma
    if of_sdxl and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    taken = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in {"eta": named.eta, "generator": generator}.items() if key in taken}
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, timestep)
        prediction = network(sample, timestep, 1)
        if guidance > 1:
            unconditional = network(sample, timestep, 0)
            prediction = unconditional + guidance * (prediction - unconditional)
        latents = scheduler.step(prediction, timestep, latents, **options)[0]
    return latents


@pytest.mark.parametrize("of_sdxl", [False, True])
@pytest.mark.parametrize("config", [SDXL, ZERO_SNR], ids=["epsilon", "zero SNR"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_contract_is_diffusers(name: str, config: Mapping[str, Any], of_sdxl: bool) -> None:
    def of(steps: int, guidance: float) -> Denoising:
        return make(name, steps, guidance, config=config, of_sdxl=of_sdxl)

    expected = {}
    for steps, guidance in product(STEPS, (1.0, 5.1)):
        try:
            expected[of(steps, guidance)] = theirs(name, steps, guidance, config, of_sdxl)
        except IndexError:  # diffusers counts from 1 where the first timestep comes twice
            assert (name, steps, of_sdxl) in {("dpmpp_2m_karras", 50, False), ("dpmpp_2m_sde_karras", 50, False)}
            with pytest.raises(IndexError):
                alone(of(steps, guidance))
    while going := [run for run in expected if not run.done]:
        together(going)
    for run, latents in expected.items():
        assert torch.equal(run.latents, latents), run.request
        found = alone(of(run.request.steps, run.request.guidance_scale))
        assert torch.equal(found, latents), run.request


def test_runs_of_all_kinds_in_one_batch_are_each_as_alone() -> None:
    """Samplers, sizes, steps, guidance and predictions; they come and go."""
    options = [
        (name, 3 + number % 4, guidance, 6, width, config, rescale)
        for number, (name, guidance, width, (config, rescale)) in enumerate(
            product(SCHEDULERS, (1.0, 5.1), (5, 8), ((SDXL, 0.0), (ZERO_SNR, 0.0), (ZERO_SNR, 0.7)))
        )
    ]

    def of(*given: Any) -> Denoising:
        return make(*given[:5], config=given[5], rescale=given[6])

    runs = [of(*each) for each in options]
    waiting, going = list(runs), []
    while waiting or going:
        arrived, waiting = waiting[:9], waiting[9:]
        going = [run for run in (*going, *arrived) if not run.done]
        together(going)
    for run, each in zip(runs, options, strict=True):
        assert torch.equal(run.latents, alone(of(*each))), each


def test_affine_runs_of_one_shape_are_advanced_together() -> None:
    names = ["euler", "ddim", "lcm", "dpmpp_2m"]
    runs = [
        *(make(name) for name in names),
        make("euler", width=8),
        make("euler", rescale=0.5),
        make("ddim", guidance=1),
    ]
    assert [[runs.index(run) for run in group] for group in advancing.groups(runs)] == [[0, 1, 3, 6], [2], [4], [5]]


def test_what_is_affine() -> None:
    assert {name for name in SCHEDULERS if make(name).affine_step is not None} == AFFINE
    assert make("ddim", config=SDXL | {"clip_sample": True}).affine_step is None


def test_a_step_alone_between_steps_with_others() -> None:
    runs = [make("dpmpp_2m"), make("dpmpp_2m", guidance=3.0)]
    expected = [alone(make("dpmpp_2m")), alone(make("dpmpp_2m", guidance=3.0))]
    while not runs[0].done:
        if runs[0].step % 2:
            together(runs)
        else:
            together(runs[:1])
            together(runs[1:])
    for run, latents in zip(runs, expected, strict=True):
        assert torch.equal(run.latents, latents)
