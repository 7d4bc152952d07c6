"""Keys and values of prompts are kept as long as prompts and weights stay what they were, and not a bit changes."""

from __future__ import annotations

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.networks import prompt_projections
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_projections import PromptProjections
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.networks.unet import UNet, example

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("checkpoints") / "checkpoint"))


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> UNet:
    return UNet(checkpoint, CPU, torch.float32)


@pytest.fixture
def projections(checkpoint: Checkpoint) -> PromptProjections:
    return PromptProjections(checkpoint.load_unet(CPU, torch.float32))


def noise(checkpoint: Checkpoint, rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator).abs() for name, tensor in example(checkpoint, rows).items()
    }


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_steps_after_the_first_have_the_same_bits(checkpoint: Checkpoint, unet: UNet, rows: int) -> None:
    first, second = noise(checkpoint, rows, 0), noise(checkpoint, rows, 1)
    second["ENCODER_HIDDEN_STATES"] = first["ENCODER_HIDDEN_STATES"].clone()
    for tensors in (first, second, noise(checkpoint, rows, 2), first):
        assert torch.equal(unet(tensors, "none"), unet(tensors))


def test_patched_weights_are_seen_under_their_name(checkpoint: Checkpoint, unet: UNet) -> None:
    tensors = noise(checkpoint, 2, 0)
    before = unet(tensors, "none")
    stacks = {stack for stack, _ in unet.patcher.places.values()}
    parameters = [parameter for stack in stacks for parameter in stack.parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(2)
        patched = unet(tensors, "patched")
        assert torch.equal(patched, unet(tensors))
        for parameter in parameters:
            parameter.div_(2)
    assert not torch.equal(patched, before)
    assert torch.equal(unet(tensors, "none"), before)


def test_what_is_kept_is_not_made_again(checkpoint: Checkpoint, projections: PromptProjections) -> None:
    embeddings = noise(checkpoint, 2, 0)["ENCODER_HIDDEN_STATES"]
    kept = projections(embeddings, "a")
    assert projections(embeddings.clone(), "a") is kept
    assert projections(embeddings, "b") is not kept
    assert projections(embeddings) is not kept
    assert projections(embeddings[:1], "a") is not kept
    assert projections(embeddings, "a") is kept
    embeddings[0, 0, 0] += 1
    changed = projections(embeddings, "a")
    assert not torch.equal(changed, kept)


@pytest.mark.parametrize("bound", ["bytes", "batches"])
def test_what_was_used_longest_ago_goes_first(
    checkpoint: Checkpoint, projections: PromptProjections, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    embeddings = noise(checkpoint, 2, 0)["ENCODER_HIDDEN_STATES"]
    if bound == "bytes":
        projections = PromptProjections(checkpoint.load_unet(CPU, torch.float32), 2 * projections(embeddings).nbytes)
    else:
        monkeypatch.setattr(prompt_projections, "MOST_KEPT", 2)
    a = projections(embeddings, "a")
    b = projections(embeddings, "b")
    assert projections(embeddings, "a") is a
    projections(embeddings, "c")
    assert projections(embeddings, "a") is a
    assert projections(embeddings, "b") is not b


def test_what_has_no_room_drives_nothing_out(checkpoint: Checkpoint, projections: PromptProjections) -> None:
    embeddings = noise(checkpoint, 4, 0)["ENCODER_HIDDEN_STATES"]
    most_bytes = projections(embeddings[:2]).nbytes
    projections = PromptProjections(checkpoint.load_unet(CPU, torch.float32), most_bytes)
    kept = projections(embeddings[:2], "a")
    assert projections(embeddings, "a") is not projections(embeddings, "a")
    assert projections(embeddings[:2], "a") is kept


def test_another_runtime_has_none(checkpoint: Checkpoint) -> None:
    unet = checkpoint.load_unet(CPU, torch.float32)
    assert Runtime("compile").unet(unet, CPU, torch.float32).prompts is None


def test_in_place_everything_lies_where_the_largest_batch_lay(
    checkpoint: Checkpoint, projections: PromptProjections
) -> None:
    in_place = PromptProjections(checkpoint.load_unet(CPU, torch.float32), in_place=True)
    batches = [noise(checkpoint, rows, rows)["ENCODER_HIDDEN_STATES"] for rows in (4, 1, 2, 3)]
    places = set()
    for weights in ("a", "a", None, "b", "a"):
        for embeddings in batches:
            found = in_place(embeddings, weights)
            assert torch.equal(found, projections(embeddings))
            places.add(found.data_ptr())
            assert in_place(embeddings, weights) is not found and torch.equal(found, projections(embeddings))
    assert len(places) == 1
