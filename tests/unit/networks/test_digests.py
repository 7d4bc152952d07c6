"""Names of what is kept beyond the life of a process: another network, or another file, has another one."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.digests import files_digest, tensors_digest, weights_digest


def test_whatever_is_changed_all_over_a_weight_changes_a_networks_digest(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sdxl(tmp_path))
    unet = checkpoint.load_unet(torch.device("cpu"), torch.float32)
    wanted = weights_digest(unet)
    assert wanted == weights_digest(checkpoint.load_unet(torch.device("cpu"), torch.float32))
    weight = max(unet.parameters(), key=torch.numel)
    with torch.no_grad():
        weight[:, 1::2] += 1  # every other column
        assert weights_digest(unet) != wanted
        weight[:, 1::2] -= 1
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    other = UNet2DConditionModel(**settings | {"norm_eps": 2e-5})
    other.load_state_dict(checkpoint.load_unet(torch.device("cpu"), torch.float32).state_dict())
    assert weights_digest(other) != wanted


def test_types_shapes_and_values_are_in_a_tensors_digest() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(2, 3)]
    tensors += [torch.tensor(0.0), torch.zeros(2, 3, dtype=torch.bool)]
    assert len({tensors_digest(each) for each in tensors}) == len(tensors)
    assert tensors_digest(*tensors[:2]) != tensors_digest(*tensors[1::-1])


def test_names_and_contents_are_in_a_directorys_digest(tmp_path: Path) -> None:
    found = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / name).write_text(text)
        found.add(files_digest(tmp_path))
    assert len(found) == 3 and files_digest(tmp_path) in found
