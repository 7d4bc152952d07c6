"""Tiny random-weight checkpoints of both families, of the real classes, made on the fly."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

EMBEDDING = (8, 16, 16)
"""Widths of what embeds a ControlNet's picture, one for each level of the VAE."""

INPAINTING_CHANNELS = 9
"""Latents, mask, and the latents of what that leaves of a picture."""

WORDS = ("a", "red", "blue", "circle", "square", "cat", "above", "on", "photo", "blurry")
"""Words with a token of their own; everything else is spelled in characters."""


def tokenizer(directory: Path) -> CLIPTokenizer:
    """A CLIP tokeniser with a token per printable character and per word of WORDS."""
    directory.mkdir(parents=True, exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [f"{character}</w>" for character in characters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merge_file = directory / "vocab.json", directory / "merges.txt"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    merge_file.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(directory, model_max_length=77)


def text_config(words: CLIPTokenizer, width: int, projection: int, depth: int) -> CLIPTextConfig:
    """A CLIP text encoder of `depth` layers."""
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        projection_dim=projection,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def vae(seed: int, depth: int = 3) -> AutoencoderKL:
    """An autoencoder of `depth` levels: three have four pixels per latent cell, two have two."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 16, 32)[-depth:],
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def sdxl(
    directory: Path,
    scheduler: SchedulerMixin | None = None,
    time_cond_proj_dim: int | None = None,
    unet_seed: int = 0,
    depth: int = 3,
    inpaints: bool = False,
    **pipeline_options: object,
) -> Path:
    """An SDXL checkpoint with pictures of 64×64 pixels and a UNet of random weights, which may take a mask too.

    Of depth 2, for tests that need parts of every kind but not many, UNet and VAE have a level less, so pictures have
    32×32 pixels, and text encoders a layer less.
    """
    words = tokenizer(directory / "words")
    torch.manual_seed(unet_seed)
    unet = UNet2DConditionModel(
        in_channels=INPAINTING_CHANNELS if inpaints else 4,
        block_out_channels=(16, 32, 32)[:depth],
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")[:depth],
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")[-depth:],
        attention_head_dim=(2, 4, 4)[:depth],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1, 2)[:depth],
        projection_class_embeddings_input_dim=8 * 6 + 24,
        cross_attention_dim=16 + 24,
        norm_num_groups=8,
        time_cond_proj_dim=time_cond_proj_dim,
    )
    pipeline = (StableDiffusionXLInpaintPipeline if inpaints else StableDiffusionXLPipeline)(
        vae=vae(1, depth),
        text_encoder=CLIPTextModel(text_config(words, 16, 16, depth)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, 24, 24, depth)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=scheduler
        or EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        **pipeline_options,
    )
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


def sd15(
    directory: Path,
    scheduler: SchedulerMixin | None = None,
    depth: int = 3,
    inpaints: bool = False,
    **unet_options: object,
) -> Path:
    """An SD 1.5 checkpoint with pictures of 64×64 pixels and a UNet of random weights; two levels at any depth."""
    words = tokenizer(directory / "words")
    torch.manual_seed(0)
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(
        in_channels=INPAINTING_CHANNELS if inpaints else 4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=8,
        **kinds | unet_options,
    )
    pipeline = (StableDiffusionInpaintPipeline if inpaints else StableDiffusionPipeline)(
        vae=vae(1, depth),
        text_encoder=CLIPTextModel(text_config(words, 16, 16, depth)),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler or PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


def with_tiny_vae(checkpoint: Path) -> Path:
    """The checkpoint, its VAE replaced by an AutoencoderTiny of four pixels per latent cell."""
    torch.manual_seed(2)
    blocks = {"encoder_block_out_channels": (16, 16, 16), "decoder_block_out_channels": (16, 16, 16)}
    network = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    shutil.rmtree(checkpoint / "vae")
    network.save_pretrained(checkpoint / "vae", safe_serialization=True)
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    return checkpoint


def controlnet(checkpoint: Path, directory: Path, seed: int, **config: object) -> Path:
    """A ControlNet of random weights for a tiny checkpoint; `config` are changes to its config."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_embedding(checkpoint))
    network.register_to_config(**config)
    return _saved(network, directory)


def controlnet_union(checkpoint: Path, directory: Path, seed: int) -> Path:
    """A ControlNetUnion of four control modes and random weights for a tiny SDXL checkpoint."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.load_config(checkpoint, subfolder="unet")
    names = set(inspect.signature(ControlNetUnionModel.__init__).parameters)
    taken = {name: value for name, value in unet.items() if name in names}
    network = ControlNetUnionModel(
        **taken,
        conditioning_embedding_out_channels=_embedding(checkpoint),
        num_control_type=4,
        num_trans_channel=16,
        num_trans_head=2,
        num_trans_layer=1,
        num_proj_channel=16,
    )
    torch.nn.init.normal_(network.task_embedding)
    return _saved(network, directory)


def _embedding(checkpoint: Path) -> tuple[int, ...]:
    return EMBEDDING[: len(AutoencoderKL.load_config(checkpoint, subfolder="vae")["block_out_channels"])]


def _saved(network: ControlNetModel | ControlNetUnionModel, directory: Path) -> Path:
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.6)  # else it would change nothing
    network.save_pretrained(directory, safe_serialization=True)
    return directory
