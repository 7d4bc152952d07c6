"""Whether all that serving a checkpoint will read is there and of a kind that is served, without reading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..common.sentences import in_a_sentence
from .checkpoint_files import CheckpointError
from .latent_decoding import decode
from .unet import META, empty_arguments
from .unet_halves import DecoderHalf, EncoderHalf
from .weight_files import difference, empty_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .checkpoint import Checkpoint

VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files of a tokeniser, one way or the other."""


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Looks at every part's class, configuration, index and files.

    Tokenisers are loaded; networks are made and called on the meta device, which computes shapes alone.

    Raises:
        CheckpointError: At the first part that could not be loaded or called; one sentence that names it.
    """
    path, made = checkpoint.path, dict[str, torch.nn.Module]()
    for part in checkpoint.networks:
        with in_a_sentence(f"{path}/{part} cannot be made", CheckpointError):
            made[part] = checkpoint.empty_part(part)
    for encoder in checkpoint.text_encoders:
        _check_vocabulary(path / encoder.replace("text_encoder", "tokenizer"))
    with in_a_sentence(f"{path}: its tokenizers cannot be made", CheckpointError):
        checkpoint.load_tokenizers()
    with in_a_sentence(f"{path}/unet cannot be called", CheckpointError):
        _call_unet(checkpoint, made["unet"])
    with in_a_sentence(f"{path}/vae cannot be called", CheckpointError):
        _call_vae(checkpoint, made["vae"])
    for part in checkpoint.networks:
        with in_a_sentence(f"{path}/{part} cannot be read", CheckpointError):
            _check_tensors(checkpoint, part, made[part])


def _check_tensors(checkpoint: Checkpoint, part: str, network: torch.nn.Module) -> None:
    """The files hold the network's weights, all of them and nothing besides."""
    tensors = empty_tensors(checkpoint.weight_files(part))
    if part in checkpoint.text_encoders:
        wrong = difference(
            _without_prefix(tensors),
            _without_prefix(network.state_dict()),
            _without_prefix(dict(network.named_buffers())),  # `position_ids`, in older files
        )
    else:
        network._fix_state_dict_keys_on_load(tensors)  # type: ignore[operator]  # attentions had other names before diffusers 0.17
        wrong = difference(tensors, network.state_dict())
    if wrong is not None:
        raise CheckpointError(f"{checkpoint.path}/{part} does not hold what its config.json says: {wrong}")


def _without_prefix(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the names that transformers tells apart: with or without the base model's prefix is the same to it."""
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def _check_vocabulary(directory: Path) -> None:
    """Without its files, transformers makes a tokeniser of no words, or of letters alone."""
    if not any(all((directory / name).is_file() for name in names) for names in VOCABULARIES):
        wanted = " or ".join(" with ".join(names) for names in VOCABULARIES)
        raise CheckpointError(f"{directory} holds no vocabulary; wanted: {wanted}")


def _call_unet(checkpoint: Checkpoint, unet: Any) -> None:
    given = empty_arguments(checkpoint, 1)
    with torch.inference_mode():
        DecoderHalf(unet)(given[2], *EncoderHalf(unet)(*given))


def _call_vae(checkpoint: Checkpoint, vae: Any) -> None:
    height, width = (side // checkpoint.vae_scale_factor for side in checkpoint.default_size)
    latents = torch.empty(1, checkpoint.latent_channels, height, width, device=META)
    with torch.inference_mode():
        picture = decode(vae, latents)
    if tuple(picture.shape[1:]) != (3, *checkpoint.default_size):
        raise ValueError(f"it decodes to {list(picture.shape[1:])}; wanted: {[3, *checkpoint.default_size]}")
