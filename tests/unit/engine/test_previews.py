"""What can be seen of a run that goes on: the latents that its last prediction implies, and when they are published."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lone_shard import SIDE, LoneShard, alone, make_run, predicted, until

from swiftdiffusion.python_backends.engine.messages import RunState
from swiftdiffusion.python_backends.engine.published import Published, state_of
from swiftdiffusion.python_backends.engine.run import Denoising
from swiftdiffusion.python_backends.engine.schedulers import Sampler
from swiftdiffusion.python_backends.engine.unet_calls import unet_calls
from swiftdiffusion.python_backends.request.outputs import FileOutput, Previews
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIG = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "clip_sample": False, **BETAS}
OWN = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DDPMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    "DEISMultistepScheduler": {"prediction_type": "v_prediction"},
    "UniPCMultistepScheduler": {"predict_x0": False, "final_sigmas_type": "sigma_min"},
}
"""Own schedulers of checkpoints, in the place of the contract's."""
SHAPE = (1, 4, 6, 5)
CLEAN = 0.9 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
ROUNDED = 0.02
"""Karras' sigmas are no timesteps: these are rounded, and with them what a prediction of the noise says of x0."""


def sampler(name: str) -> Sampler:
    config = CONFIG | ({} if name in SCHEDULERS else {"_class_name": name, **OWN[name]})
    return Sampler(config, name if name in SCHEDULERS else None, steps=9, seed=3, shape=SHAPE, of_sdxl=True)


def signal_and_noise(timestep: torch.Tensor) -> tuple[float, float]:
    """How much of a UNet's input at a timestep, which may lie between two, is picture and how much is noise."""
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    sigma = math.exp(np.interp(float(timestep), np.arange(1000), torch.log((1 / kept - 1) ** 0.5).numpy()))
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def exact(sample: torch.Tensor, timestep: torch.Tensor, kind: str) -> torch.Tensor:
    """What a network says that knows the picture."""
    signal, noise = signal_and_noise(timestep)
    epsilon = (sample.double() - signal * CLEAN) / noise
    return (epsilon if kind == "epsilon" else signal * epsilon - noise * CLEAN).float()


@pytest.mark.parametrize("name", [*SCHEDULERS, *OWN])
def test_every_sampler_has_something_finite_to_show_after_every_step(name: str) -> None:
    run = sampler(name)
    for step in range(len(run.timesteps)):
        run.advance(step, torch.tanh(run.model_input(step)))
        shown = run.predicted()
        assert (shown.shape, shown.dtype) == (SHAPE, torch.float32)
        assert shown.isfinite().all()
        assert float(shown.std()) < 50


@pytest.mark.parametrize("name", [*SCHEDULERS, *OWN])
def test_it_is_the_picture_where_the_network_knows_that(name: str) -> None:
    run, kind = sampler(name), OWN.get(name, {}).get("prediction_type", "epsilon")
    for step in range(len(run.timesteps)):
        run.advance(step, exact(run.model_input(step), run.timesteps[step], kind))
        tolerance = ROUNDED if "karras" in name else 1e-3
        torch.testing.assert_close(run.predicted(), CLEAN, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["tcd", "PNDMScheduler"])
def test_before_the_first_step_there_is_noise(name: str) -> None:
    assert 0.5 < float(sampler(name).predicted().std()) < 1.5


def test_a_sampler_over_no_betas_shows_its_noisy_latents() -> None:
    run = Sampler({"_class_name": "IPNDMScheduler"}, None, steps=9, seed=3, shape=SHAPE, of_sdxl=True)
    for step in range(len(run.timesteps)):
        run.advance(step, 100 * torch.tanh(run.model_input(step)))
        assert float(run.predicted().std()) <= 1.001


@pytest.mark.parametrize("name", [*SCHEDULERS, *OWN])
def test_looking_changes_nothing(name: str) -> None:
    """Neither does a step write over what was seen before it."""
    seen, unseen = sampler(name), sampler(name)
    shown = []
    for step in range(len(seen.timesteps)):
        for run in (seen, unseen):
            run.advance(step, torch.tanh(run.model_input(step)))
        shown.append((seen.predicted(), seen.predicted().clone()))
        assert torch.equal(seen.latents, unseen.latents)
    assert all(torch.equal(*each) for each in shown)


def previewed(run_id: str, every: int, **options: Any) -> Denoising:
    """A run whose client sees previews."""
    run = make_run(run_id, **options)
    run.request = replace(run.request, previews=Previews(every, 64, "linear", FileOutput("jpeg", 90)))
    return run


def step(run: Denoising) -> None:
    given = {run: run.model_input()}
    run.advance({half: predicted(unet_calls([(run, half)], given)[0]) for half in run.halves})


@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "dpmpp_2m_sde_karras", "unipc", "tcd"])
def test_a_run_tells_of_its_latents_after_every_so_many_steps_and_at_its_end(scheduler: str) -> None:
    run, unseen = previewed("a", 2, steps=5, scheduler=scheduler), make_run("a", steps=5, scheduler=scheduler)
    shown = {}
    previews = run.request.previews
    assert previews is not None
    while not run.done:
        assert state_of(run)[1] is None
        if previews.shows(run.step):
            latents = run.sampler.predicted().cpu()
            shown[run.step] = latents.clone(), latents
        step(run)
    state, latents = state_of(run)
    assert (state.preview_step, state.shape) == (None, (1, 4, SIDE, SIDE))
    assert list(shown) == [2, 4]
    assert all(torch.equal(*each) for each in shown.values())  # nobody writes over what was published
    assert latents is not None
    assert torch.equal(latents, alone(unseen))


@pytest.mark.parametrize("every", [5, 7, 200])
def test_the_last_step_has_no_preview_but_the_picture(every: int) -> None:
    run = previewed("a", every, steps=5)
    while not run.done:
        assert state_of(run)[1] is None
        step(run)


def test_an_engine_shows_previews_of_those_who_want_them(shards: Callable[..., LoneShard]) -> None:
    shard = shards()
    runs = [previewed("a", 1, steps=6), make_run("b", steps=6), previewed("c", 2, steps=6, scheduler="lcm")]
    names = [run.request.run_id for run in runs]
    seen: dict[str, set[int]] = {name: set() for name in names}
    final: dict[str, torch.Tensor] = {}

    def look() -> bool:
        polled, latents = shard.engine.poll([name for name in names if name not in final])
        rest = iter(latents)
        for name, state in polled.runs.items():
            assert state is not None
            if state.shape is not None:
                each = next(rest)
                assert each.shape == state.shape
                if state.preview_step is not None:
                    seen[name].add(state.preview_step)
                else:
                    final[name] = each
        assert next(rest, None) is None
        return len(final) == len(names)

    shard.submit_together(*runs)
    until(look)
    assert seen["a"] <= set(range(1, 6))
    assert seen["b"] == set()
    assert seen["c"] <= {2, 4}
    again = make_run("a", steps=6), make_run("b", steps=6), make_run("c", steps=6, scheduler="lcm")
    for run in again:
        assert torch.equal(final[run.request.run_id], alone(run))


def test_latents_belong_to_the_state_they_came_with() -> None:
    published = Published()
    published.begin("a", 4, 1)
    published.begin("b", 4, 1)
    assert published.fetch(["a", "b", "nobody"]) == ({"a": RunState(0, 4), "b": RunState(0, 4), "nobody": None}, [])
    preview, other = (torch.full((1, 4, 2, 2), float(value)) for value in range(2))
    published.show("a", 2, preview)
    published.put("a", RunState(2, 4))
    published.show("b", 3, other)
    published.put("b", RunState(3, 4))
    states, latents = published.fetch(["b", "a"])
    assert states == {
        "b": RunState(3, 4, shape=(1, 4, 2, 2), preview_step=3),
        "a": RunState(2, 4, shape=(1, 4, 2, 2), preview_step=2),
    }
    assert [float(each.mean()) for each in latents] == [1.0, 0.0]
    assert published.fetch(["a", "b"]) == ({"a": RunState(2, 4), "b": RunState(3, 4)}, [])


def test_a_preview_waits_until_it_is_fetched_and_goes_with_the_picture() -> None:
    published = Published()
    published.begin("a", 4, 1)
    preview, last = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    published.show("a", 2, preview)
    published.put("a", RunState(2, 4))
    published.put("a", RunState(3, 4))
    states, latents = published.fetch(["a"])
    assert states == {"a": RunState(3, 4, shape=(1, 4, 2, 2), preview_step=2)}
    assert latents == [preview]
    published.show("a", 3, preview)
    done = RunState(4, 4, shape=(1, 4, 2, 2), info={"seed": 1})
    published.put("a", done, last)
    assert published.fetch(["a"]) == ({"a": done}, [last])
    assert published.fetch(["a"]) == ({"a": None}, [])
