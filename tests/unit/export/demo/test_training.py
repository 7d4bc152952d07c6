"""Parts of the demo's training that can go wrong unseen: gradients, budgets, checkpoints, the VAE's start."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from swiftdiffusion.export.demo.checkpoints import Budget, Checkpoint, ExponentialMovingAverage, warmup_cosine
from swiftdiffusion.export.demo.parallel import Replicas
from swiftdiffusion.export.demo.unet_training import stratified_timesteps
from swiftdiffusion.export.demo.vae_training import SCALING_FACTOR, build_vae, normalise_latents, training_batch


def _squared_error(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (module(inputs) - targets).square().mean()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_replicas_give_the_gradient_of_the_whole_batch(workers: int) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3))
    inputs, targets = torch.randn(8, 5), torch.randn(8, 3)
    whole = _squared_error(module, inputs, targets)
    expected = torch.autograd.grad(whole, list(module.parameters()))
    replicas = Replicas(module, workers)
    for _ in range(2):
        assert replicas.backward(_squared_error, inputs, targets) == pytest.approx(whole.item(), rel=1e-6)
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert all(torch.equal(replica[0].weight, module[0].weight) for replica in replicas.modules)
    assert torch.get_num_threads() == threads


def test_vae_starts_with_colours_and_normalised_latents_decode_alike() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    pictures = training_batch(np.random.default_rng(0), crop=False)
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        normalise_latents(vae, seed=0, pictures=16)
        posterior = vae.encode(pictures).latent_dist
        after = vae.decode(posterior.mean).sample
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert 0.2 < (posterior.mean * SCALING_FACTOR).std() < 3
    coarse, seen = (nn.functional.avg_pool2d(x, 16).flatten(2) for x in (pictures, after))
    colours, guessed = (x - x.mean(dim=1, keepdim=True) for x in (coarse, seen))
    assert torch.cosine_similarity(colours.flatten(), guessed.flatten(), dim=0) > 0.8


def test_budget_ends_with_steps_or_minutes() -> None:
    assert Budget(steps=10).progress(5) == 0.5
    assert Budget(steps=10).progress(20) == 1
    assert Budget(steps=10, minutes=1, spent=60).progress(0) == 1


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [warmup_cosine(progress, peak=1.0) for progress in (0, 0.03, 0.5, 1)]
    assert rates[0] < 0.1
    assert rates[1] == pytest.approx(1)
    assert rates[1] > rates[2] > rates[3] > 0


def test_checkpoints_come_back_whole(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "stage" / "unet.pt")
    assert checkpoint.load() is None
    checkpoint.save(step=3, weights={"a": torch.ones(2)})
    checkpoint.save(step=4, weights={"a": torch.zeros(2)})
    state = checkpoint.load()
    assert state is not None
    assert state["step"] == 4
    assert torch.equal(state["weights"]["a"], torch.zeros(2))
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["unet.pt"]


def test_average_follows_early_and_settles_late() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = ExponentialMovingAverage(module, decay=0.9)
    nn.init.ones_(module.weight)
    average.update(module, step=0)
    assert average.average["weight"].item() == pytest.approx(0.9)
    nn.init.zeros_(module.weight)
    average.update(module, step=10_000)
    assert average.average["weight"].item() == pytest.approx(0.81)


def test_timesteps_cover_the_schedule_evenly() -> None:
    timesteps = stratified_timesteps(np.random.default_rng(0), 50).sort().values
    assert ((timesteps // 20) == torch.arange(50)).all()
