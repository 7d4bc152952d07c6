"""A checkpoint's networks, loaded one after the other, as the modules that become graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...python_backends.controlnets.weights import load_controlnet
from ...python_backends.lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from ...python_backends.networks.controlnet_modules import PositionalControlNet
from ...python_backends.networks.digests import weights_digest
from ...python_backends.networks.fused_modules import fuse
from ...python_backends.networks.unet import arguments, example
from ...python_backends.networks.unet_halves import DecoderHalf, EncoderHalf
from ...python_backends.tensorrt.tensor_names import (
    CONTROL_EMBEDDING,
    CONTROLNET_INPUTS,
    DECODER,
    ENCODER,
    ENCODER_INPUTS,
    VAE_DECODER,
    halfway_of,
)
from ..repository.controlnets import fitting
from ..repository.serving_options import ServedControlNet
from .errors import UnexportableError
from .graph_modules import ControlEmbedder, Tensors, TextEncoderGraph, VaeDecoderGraph, WithoutAbsentInputs
from .graph_part import GraphPart, Sizes, output_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    from ...python_backends.networks.checkpoint import Checkpoint

CPU = torch.device("cpu")


def part_names(checkpoint: Checkpoint, controlnets: Mapping[str, Path]) -> list[str]:
    """Names of all graphs, in the order in which they are made."""
    of_controlnets = [name for each in controlnets for name in (f"controlnet_{each}", f"controlnet_{each}_embedder")]
    encoders = [TEXT_ENCODER, TEXT_ENCODER_2] if checkpoint.family == "sdxl" else [TEXT_ENCODER]
    return [ENCODER, DECODER, *of_controlnets, *encoders, VAE_DECODER]


def checkpoint_parts(
    checkpoint: Checkpoint, dtype: torch.dtype, sizes: Sizes, controlnets: Mapping[str, Path]
) -> Iterator[GraphPart]:
    """All parts; a network is loaded when its first one is asked for.

    Args:
        checkpoint: The checkpoint.
        dtype: Of weights and tensors. A VAE that overflows in float16 stays float32.
        sizes: Of the examples.
        controlnets: Name → directory or file.

    Raises:
        ControlNetFileError: If a ControlNet does not fit.
        UnexportableError: If a network has no graph of this kind.
    """
    _check_controlnets(checkpoint, controlnets)
    yield from unet_parts(checkpoint, dtype, sizes)
    for name, path in controlnets.items():
        yield from controlnet_parts(name, path, checkpoint, dtype, sizes)
    yield from text_encoder_parts(checkpoint, dtype, sizes)
    yield vae_part(checkpoint, dtype, sizes)


def unet_parts(checkpoint: Checkpoint, dtype: torch.dtype, sizes: Sizes) -> Iterator[GraphPart]:
    """The two halves of the UNet."""
    inputs = example_inputs(checkpoint, checkpoint.unet_channels, dtype, sizes)
    return halves(checkpoint.load_unet(CPU, dtype), inputs, sizes)


def halves(unet: UNet2DConditionModel, inputs: Mapping[str, torch.Tensor], sizes: Sizes) -> Iterator[GraphPart]:
    """The two halves of a UNet.

    Args:
        unet: Fused in place.
        inputs: Of the encoder half, by ENCODER_INPUTS' names.
        sizes: Of the inputs.
    """
    digest = weights_digest(unet)
    fuse(unet)
    keep_dtype(unet, unet.conv_in.weight.dtype)
    encoder = WithoutAbsentInputs(EncoderHalf(unet), ENCODER_INPUTS, list(inputs))
    shapes = output_shapes(encoder, inputs)
    halfway = halfway_of(len(shapes))
    yield GraphPart(ENCODER, UNET, encoder, unet, inputs, halfway, sizes, digest)
    context = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    between = {
        name: torch.zeros(shape, dtype=unet.conv_in.weight.dtype) for name, shape in zip(halfway, shapes, strict=True)
    }
    module, taken = Tensors(DecoderHalf(unet)), context | between
    yield GraphPart(DECODER, UNET, module, unet, taken, ["noise_prediction"], sizes, digest)


def controlnet_parts(
    name: str, path: Path, checkpoint: Checkpoint, dtype: torch.dtype, sizes: Sizes
) -> Iterator[GraphPart]:
    """A ControlNet, and what embeds its picture."""
    network = load_controlnet(path, checkpoint, dtype).requires_grad_(False).eval()
    given = example_inputs(checkpoint, checkpoint.latent_channels, dtype, sizes)
    return steered(name, network, given, sizes, checkpoint.vae_scale_factor)


def steered(
    name: str, network: ControlNetModel, given: Mapping[str, torch.Tensor], sizes: Sizes, factor: int
) -> Iterator[GraphPart]:
    """A ControlNet, and what embeds its picture.

    Args:
        name: Of the ControlNet.
        network: Fused in place, and without its embedding afterwards.
        given: What the UNet takes, by ENCODER_INPUTS' names.
        sizes: Of the inputs.
        factor: Pixels per latent cell.
    """
    dtype = network.conv_in.weight.dtype
    fuse(network)
    keep_dtype(network, dtype)
    controlnet = PositionalControlNet(network)
    digest = weights_digest(network)
    pixels = {"pixels": torch.zeros(sizes.rows, 3, sizes.height * factor, sizes.width * factor, dtype=dtype)}
    embedder = ControlEmbedder(controlnet.embed)
    (embedded,) = output_shapes(embedder, pixels)
    inputs = {key: tensor for key, tensor in given.items() if key in CONTROLNET_INPUTS}
    inputs[CONTROL_EMBEDDING] = torch.zeros(embedded, dtype=dtype)
    module = WithoutAbsentInputs(controlnet, (*CONTROLNET_INPUTS, CONTROL_EMBEDDING), list(inputs))
    residuals = [f"residual_{index}" for index in range(len(network.controlnet_down_blocks))]
    component = f"controlnet_{name}"
    outputs = [*residuals, "residual_mid"]
    yield GraphPart(component, component, module, network, inputs, outputs, sizes, digest)
    name, outputs = f"{component}_embedder", [CONTROL_EMBEDDING]
    yield GraphPart(name, component, Tensors(embedder), embedder, pixels, outputs, sizes, digest)


def text_encoder_parts(checkpoint: Checkpoint, dtype: torch.dtype, sizes: Sizes) -> Iterator[GraphPart]:
    """SD 1.5's text encoder, or both of SDXL."""
    pipeline = checkpoint.load_text_pipeline(CPU, dtype)
    tokens, _ = checkpoint.text_embedding_shape
    for component in (TEXT_ENCODER, TEXT_ENCODER_2):
        encoder = getattr(pipeline, component, None)
        if encoder is None:
            continue
        if getattr(encoder.config, "use_attention_mask", False):
            raise UnexportableError(f"{checkpoint.path}/{component} wants an attention mask; wanted: one that does not")
        penultimate, pooled = checkpoint.family == "sdxl", component == TEXT_ENCODER_2
        module = Tensors(TextEncoderGraph(encoder.requires_grad_(False).eval(), penultimate, pooled))
        inputs = {"input_ids": torch.zeros(sizes.rows, tokens, dtype=torch.int64)}
        outputs = ["hidden_states", "pooled"] if pooled else ["hidden_states"]
        yield GraphPart(component, component, module, encoder, inputs, outputs, sizes, weights_digest(encoder))


def vae_part(checkpoint: Checkpoint, dtype: torch.dtype, sizes: Sizes) -> GraphPart:
    """The VAE's decoder; one that overflows in float16 stays float32."""
    return decoder(checkpoint.load_vae(CPU, dtype), sizes)


def decoder(vae: AutoencoderKL, sizes: Sizes) -> GraphPart:
    """A VAE's decoder, which is fused in place."""
    digest = weights_digest(vae)
    fuse(vae)
    dtype = next(vae.parameters()).dtype
    latents = torch.zeros(sizes.rows, vae.config.latent_channels, sizes.height, sizes.width, dtype=dtype)
    module, inputs = Tensors(VaeDecoderGraph(vae)), {"latents": latents}
    return GraphPart(VAE_DECODER, "vae", module, vae, inputs, ["image"], sizes, digest)


def example_inputs(checkpoint: Checkpoint, channels: int, dtype: torch.dtype, sizes: Sizes) -> dict[str, torch.Tensor]:
    """What the UNet's encoder half takes: zeros under the names of ENCODER_INPUTS, absent inputs left out."""
    tensors = example(checkpoint, sizes.rows)
    tensors["LATENTS"] = torch.zeros(sizes.rows, channels, sizes.height, sizes.width)
    tensors["TIMESTEPS"] = torch.zeros(sizes.rows, 1)
    given = dict(zip(ENCODER_INPUTS, arguments(tensors, CPU, dtype), strict=True))
    return {name: tensor for name, tensor in given.items() if tensor.numel()}


def _check_controlnets(checkpoint: Checkpoint, controlnets: Mapping[str, Path]) -> None:
    for name, path in controlnets.items():
        fitted = fitting(ServedControlNet(name, path), {name: checkpoint})[name]
        if fitted.control_modes:
            raise UnexportableError(
                f"ControlNet {name} ({path}) is a union, whose graph would depend on the pictures' modes; "
                "wanted: a ControlNetModel, which steers by one picture of one kind"
            )


def keep_dtype(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Gives the embeddings of SDXL's sizes the network's type where they are made, and not one operator later.

    diffusers concatenates them, float32, with the pooled embedding and casts what comes out. The bits are the same; an
    ONNX Concat of two types is not valid.
    """
    projection = getattr(network, "add_time_proj", None)
    if projection is not None:
        projection.register_forward_hook(lambda module, inputs, output: output.to(dtype))
