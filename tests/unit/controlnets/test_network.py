"""A ControlNet service's network: rows of different pictures, modes and scales in one call, and rows that fail."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.common.errors import ImageUnavailableError
from swiftdiffusion.python_backends.controlnets import network as network_module
from swiftdiffusion.python_backends.controlnets.network import ControlNet
from swiftdiffusion.python_backends.controlnets.weights import load_controlnet
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.request.completed import ControlNetUse
from swiftdiffusion.python_backends.tensorrt import networks as engines

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = {letter * 64: seed for seed, letter in enumerate("abcd")}
GONE = "e" * 64


def image(key: str) -> np.ndarray:
    """The picture of a key: noise."""
    if key == GONE:
        raise ImageUnavailableError("CONTROL_IMAGES: the picture has gone")
    return np.random.default_rng(IMAGES[key]).integers(0, 256, (64, 64, 3), np.uint8)


def use(letters: str, **fields: object) -> ControlNetUse:
    """A use of the pictures of these letters."""
    made = ControlNetUse("x", tuple(letter * 64 for letter in letters), 0.5, 0.0, 1.0, False)
    return replace(made, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Files:
    """A tiny SDXL checkpoint and its ControlNets by kind."""

    checkpoint: Checkpoint
    paths: dict[str, Path]

    def load(self, kind: str, dtype: torch.dtype, runtime: Runtime | None = None) -> ControlNet:
        return ControlNet(self.paths[kind], self.checkpoint, torch.device("cpu"), dtype, image, runtime, "engine")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("networks")
    checkpoint = Checkpoint(checkpoints.sdxl(directory / "sdxl"))
    make = {"plain": checkpoints.controlnet, "union": checkpoints.controlnet_union}
    return Files(checkpoint, {kind: made(checkpoint.path, directory / kind, 0) for kind, made in make.items()})


@pytest.fixture(scope="module")
def network(files: Files) -> Callable[[str], ControlNet]:
    """In float64: float32's rounding depends on the rows and the processor by about what is tolerated here."""
    return cache(lambda kind: files.load(kind, torch.float64))


def tensors(rows: int, tokens: int = 77) -> dict[str, torch.Tensor]:
    """Inputs of a call."""
    generator = torch.Generator().manual_seed(0)
    return {
        "LATENTS": torch.randn(rows, 4, 16, 16, generator=generator),
        "TIMESTEPS": torch.full((rows, 1), 500.0),
        "ENCODER_HIDDEN_STATES": torch.randn(rows, tokens, 40, generator=generator),
        "TEXT_EMBEDS": torch.randn(rows, 24, generator=generator),
        "TIME_IDS": torch.full((rows, 6), 64.0),
    }


MIXED = {
    "plain": [use("a"), use("b", scale=1.5), use("c", guess_mode=True), use("a")],
    "union": [
        use("a", control_modes=(1,)),
        use("ab", control_modes=(0, 3)),
        use("ab", control_modes=(0, 3), scale=0.9),
        use("cd", control_modes=(0, 3), sole=False),
        use("c", control_modes=(2,), guess_mode=True),
    ],
}


@pytest.mark.parametrize("tokens", [77, 2 * 77])
@pytest.mark.parametrize("kind", MIXED)
def test_rows_are_as_if_alone(network: Callable[[str], ControlNet], kind: str, tokens: int) -> None:
    net, uses = network(kind), MIXED[kind]
    given = tensors(len(uses), tokens)
    together, failures = net(given, uses)
    assert not failures
    for row, each in enumerate(uses):
        alone, _ = net({name: tensor[row : row + 1] for name, tensor in given.items()}, [each])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("kind", MIXED)
def test_rows_are_as_if_alone_in_float32(files: Files, kind: str) -> None:
    """To the rounding of the largest residual."""
    net, uses = files.load(kind, torch.float32), MIXED[kind]
    given = tensors(len(uses))
    together, _ = net(given, uses)
    for row, each in enumerate(uses):
        alone, _ = net({name: tensor[row : row + 1] for name, tensor in given.items()}, [each])
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("plain", use("a", control_modes=(0,))),
        ("plain", use("ab")),
        ("union", use("a", control_modes=(4,))),
        ("union", use("ab", control_modes=(1,))),
        ("union", use("a")),
    ],
)
def test_what_no_shard_asks_for_fails_alone(
    network: Callable[[str], ControlNet], kind: str, wrong: ControlNetUse
) -> None:
    _, failures = network(kind)(tensors(2), [MIXED[kind][0], wrong])
    assert set(failures) == {1}
    assert "CONTROL has" in str(failures[1])


def test_a_row_whose_picture_has_gone_fails_alone(network: Callable[[str], ControlNet]) -> None:
    net, given = network("plain"), tensors(3)
    residuals, failures = net(given, [use("a"), use("e"), use("b")])
    assert set(failures) == {1}
    assert isinstance(failures[1], ImageUnavailableError)
    assert not residuals[1].any()
    expected, _ = net(given, [use("a"), use("a"), use("b")])
    torch.testing.assert_close(residuals[::2], expected[::2], rtol=1e-4, atol=1e-5)
    assert set(net(given, [use("e")] * 3)[1]) == {0, 1, 2}


def test_with_an_engine_the_embedding_is_all_that_is_kept(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine runs here: its place is taken by something that gives the ControlNet's shapes."""
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load(*arguments: Any) -> torch.nn.Module:
        made = load_controlnet(*arguments)
        loaded.append(weakref.ref(made))
        return made

    class Engine:
        def __init__(self, *place: object) -> None:
            """Loads nothing."""

        def __call__(self, latents: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (others[-1],)

    monkeypatch.setattr(network_module, "load_controlnet", load)
    monkeypatch.setattr(engines, "EngineControlNet", Engine)
    runtime = Runtime("tensorrt-rtx")
    net = files.load("plain", torch.float32, runtime)
    gc.collect()
    assert loaded.pop()() is None
    embedded, failures = net(tensors(1), [use("a", scale=1.0)])
    assert not failures
    pixels = torch.from_numpy(image("a" * 64)).permute(2, 0, 1)[None].float() / 255
    expected = load_controlnet(files.paths["plain"], files.checkpoint, torch.float32).controlnet_cond_embedding(pixels)
    assert torch.equal(embedded, expected.detach().flatten(1))
    union = files.load("union", torch.float32, runtime)
    gc.collect()
    assert loaded.pop()() is not None
    assert not union(tensors(1), [MIXED["union"][0]])[1]
