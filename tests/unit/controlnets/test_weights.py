"""Files that people have for ControlNets: every weight is used and every other tensor named."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from controlnet_files import in_ldm_names
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

import checkpoints
from swiftdiffusion.python_backends.controlnets.weights import ControlNetFileError, load_controlnet
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"
FAMILIES = {"sdxl": checkpoints.sdxl, "sd15": checkpoints.sd15}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(FAMILIES[request.param](tmp_path_factory.mktemp("weights") / request.param))


@pytest.fixture(scope="module")
def directory(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.controlnet(checkpoint.path, tmp_path_factory.mktemp("edges") / "edges", 0)


@pytest.fixture(scope="module")
def weights(directory: Path) -> dict[str, torch.Tensor]:
    """As diffusers loads them."""
    return ControlNetModel.from_pretrained(directory).state_dict()


def loaded(path: Path, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return load_controlnet(path, checkpoint, torch.float32).state_dict()


def in_ldm(weights: dict[str, torch.Tensor], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return in_ldm_names(weights, checkpoint.unet_config["layers_per_block"])


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_directory_loads_as_diffusers_loads_it(
    directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor]
) -> None:
    assert same(loaded(directory, checkpoint), weights)


def test_single_files_in_both_namings(
    directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert same(loaded(directory / WEIGHTS, checkpoint), weights)
    ldm = in_ldm(weights, checkpoint)
    for name, tensors in (("with", ldm), ("without", {key.removeprefix("control_model."): ldm[key] for key in ldm})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert same(loaded(tmp_path / f"{name}.safetensors", checkpoint), weights)


def test_differences_are_added_to_the_weights_of_the_unet(
    checkpoint: Checkpoint, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    base = UNet2DConditionModel.from_pretrained(checkpoint.path / "unet").state_dict()
    apart = {name: tensor - base[name] if name in base else tensor for name, tensor in weights.items()}
    assert not same(apart, weights)
    save_file(in_ldm(apart, checkpoint) | {"difference": torch.ones(1)}, tmp_path / "diff.safetensors")
    ours = loaded(tmp_path / "diff.safetensors", checkpoint)
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_a_tensor_that_nothing_uses_is_named(
    directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(in_ldm(weights, checkpoint) | {"control_model.extra": torch.zeros(1)}, tmp_path / "ldm.safetensors")
    with pytest.raises(ControlNetFileError, match=r"it has extra besides \(1 in all\)"):
        loaded(tmp_path / "ldm.safetensors", checkpoint)
    shutil.copytree(directory, tmp_path / "edges")
    save_file(weights | {"extra.weight": torch.zeros(1)}, tmp_path / "edges" / WEIGHTS)
    with pytest.raises(ControlNetFileError, match=r"it has extra\.weight besides"):
        loaded(tmp_path / "edges", checkpoint)


def test_files_behind_links_are_files(
    directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """As the Hugging Face hub's cache lays them: names are links to blobs that have no suffix."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for index, name in enumerate(("config.json", WEIGHTS)):
        shutil.copy(directory / name, blobs / str(index))
        (snapshot / name).symlink_to(blobs / str(index))
    assert same(loaded(snapshot, checkpoint), weights)
    assert same(loaded(snapshot / WEIGHTS, checkpoint), weights)


def test_a_network_with_fewer_attentions_than_the_unet(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Such as the small ones of SDXL: a file in diffusers' names says it itself."""
    unet = UNet2DConditionModel.load_config(checkpoint.path / "unet")
    embedding = checkpoints.EMBEDDING[: len(checkpoint.vae_config["block_out_channels"])]
    taken = unet.keys() & inspect.signature(ControlNetModel.__init__).parameters.keys()
    fewer = {"down_block_types": ["DownBlock2D"] * len(unet["down_block_types"]), "mid_block_type": "UNetMidBlock2D"}
    own = {key: unet[key] for key in taken} | fewer | {"conditioning_embedding_out_channels": embedding}
    network = ControlNetModel(**own)
    network.save_pretrained(tmp_path / "small")
    for path in (tmp_path / "small", tmp_path / "small" / WEIGHTS):
        assert same(loaded(path, checkpoint), network.state_dict())


KINDS = {
    "Control-LoRA": ["lora_controlnet", "input_blocks.1.0.in_layers.2.up", "zero_convs.0.0.weight"],
    "ControlNet-LLLite": ["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
    "IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "T2I-Adapter": ["body.0.in_conv.weight", "conv_in.weight", "conv_in.bias"],
    "LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "LoRA,": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "textual inversion": ["clip_g", "clip_l"],
    "whole checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
    "UNet": ["conv_in.bias", "up_blocks.0.resnets.0.conv1.weight"],
    "VAE": ["decoder.conv_in.weight", "quant_conv.weight"],
    "text encoder": ["text_model.embeddings.position_ids"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    save_file({name: torch.zeros(1) for name in KINDS[kind]}, tmp_path / "file.safetensors")
    for path in (tmp_path / "file.safetensors", tmp_path):
        with pytest.raises(ControlNetFileError, match=f" is an? {kind.rstrip(',')}.*; served are ControlNets"):
            load_controlnet(path, checkpoint, torch.float32)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda tensor: (tensor * 100).to(torch.int8), "holds whole numbers, as quantised weights do"),
        (lambda tensor: tensor * torch.nan, "holds NaN or infinite values"),
        (lambda _: torch.tensor(1.0), "cannot be read as a ControlNet|wanted: "),
    ],
)
def test_values_that_are_no_weights(
    directory: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor], tmp_path: Path, spoiled: Any, said: str
) -> None:
    shutil.copytree(directory, tmp_path / "edges")
    for name in ("conv_in.weight", "controlnet_cond_embedding.conv_in.weight"):
        save_file(weights | {name: spoiled(weights[name])}, tmp_path / "edges" / WEIGHTS)
        for path in (tmp_path / "edges", tmp_path / "edges" / WEIGHTS):
            with pytest.raises(ControlNetFileError, match=said):
                loaded(path, checkpoint)


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_out_channels": None},
        {"conditioning_embedding_out_channels": None},
        {"down_block_types": ["Foo"]},
        {"_class_name": ["ControlNetModel"]},
    ],
    ids=str,
)
def test_a_config_that_means_nothing(
    directory: Path, checkpoint: Checkpoint, tmp_path: Path, wrong: dict[str, object]
) -> None:
    shutil.copytree(directory, tmp_path / "edges")
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "edges" / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(ControlNetFileError, match=r"/edges (cannot be read as a ControlNet|does not hold)") as caught:
        loaded(tmp_path / "edges", checkpoint)
    assert "\n" not in str(caught.value)


def test_an_empty_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ControlNetFileError, match=r"none\.safetensors"):
        loaded(tmp_path / "none.safetensors", checkpoint)


def test_weights_that_are_not_all_there(directory: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copy(directory / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ControlNetFileError, match=r"holds diffusion_pytorch_model\.bin, a pickle, which is never read"):
        load_controlnet(tmp_path, checkpoint, torch.float32)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    shards = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ControlNetFileError, match=r"names .*-00001-of-00002\.safetensors, which is not there"):
        load_controlnet(tmp_path, checkpoint, torch.float32)
    index.write_text("[]")
    with pytest.raises(ControlNetFileError, match="is no index of weights"):
        load_controlnet(tmp_path, checkpoint, torch.float32)
