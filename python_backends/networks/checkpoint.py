"""A diffusers-format checkpoint: what it is, and its parts loaded one by one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from packaging import version

from ..common.sentences import first_sentence
from .checkpoint_files import CheckpointError, CheckpointFiles
from .weight_files import WeightFileError, empty_tensors, weights_variant

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, PreTrainedModel

    from .latent_encoding import LatentScale

FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionInpaintPipeline": "sd15",
}
"""diffusers' pipeline class of a checkpoint → name of its public model."""

EDITING = {
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd15": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
}
"""Of a family, diffusers' classes that begin with a picture: of all of it, and of what a mask leaves."""

DEFAULTED = "_use_default_values"
"""diffusers' key for the names of what a configuration leaves out."""

MASK_CHANNELS = 1
DEFAULT_SAMPLE_SIZES = {"sdxl": 128, "sd15": 64}
"""Cells along a side of the latents of a UNet that says nothing of them."""


def missing_weights(network: torch.nn.Module) -> list[str]:
    """Names of the weights that diffusers did not find in the network's file: it leaves them without memory."""
    return [name for name, parameter in network.named_parameters() if parameter.is_meta]


def _raise_if_missing(weights: list[str], part: Path) -> None:
    if weights:
        raise CheckpointError(f"{part} is not whole: it lacks {weights[0]} ({len(weights)} in all)")


@dataclass(frozen=True)
class Checkpoint(CheckpointFiles):
    """A checkpoint that can be served.

    Reading a property reads JSON only; weights are read by the `load_…` methods, each its own part and no other.

    Attributes:
        path: The directory that holds `model_index.json`.
    """

    def __post_init__(self) -> None:
        if self.pipeline_class_name not in FAMILIES:
            raise CheckpointError(
                f"{self.path} holds a {self.pipeline_class_name}; served are {', '.join(sorted(FAMILIES))}"
            )
        self.weight_files("unet")  # raises, if there are none
        plain = self.latent_channels
        inpainting = 2 * plain + MASK_CHANNELS
        if self.unet_channels not in (plain, inpainting):
            raise CheckpointError(
                f"{self.path}: the UNet takes {self.unet_channels} channels, the VAE gives {plain}; served are UNets "
                f"that take {plain}, or {inpainting} to inpaint"
            )
        unserved = {"text", "text_image", "image", "image_hint"}
        if self.unet_config.get("addition_embed_type") in unserved or self.unet_config.get("encoder_hid_dim_type"):
            raise CheckpointError(f"{self.path}: the UNet wants conditioning that is not served")

    @property
    def pipeline_class_name(self) -> str:
        """Name of diffusers' pipeline class."""
        return str(self.index.get("_class_name"))

    @property
    def family(self) -> str:
        """Name of the public model: `sdxl` or `sd15`."""
        return FAMILIES[self.pipeline_class_name]

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """`unet/config.json`."""
        return self.read("unet/config.json")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """`vae/config.json`."""
        return self.read("vae/config.json")

    @cached_property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether an absent negative prompt means embeddings of zeros (SDXL) and not those of the empty prompt."""
        if self.family != "sdxl":
            return False
        default = inspect.signature(self._pipeline_class.__init__).parameters["force_zeros_for_empty_prompt"].default
        return bool(self.index.get("force_zeros_for_empty_prompt", default))

    @property
    def has_safety_checker(self) -> bool:
        """Whether the checkpoint brings a safety checker (which is not run by this server)."""
        return self.class_name("safety_checker")[0] is not None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along one axis, as diffusers' pipelines derive it."""
        widths = self.vae_config.get("block_out_channels") or self.vae_config["decoder_block_out_channels"]
        return 2 ** (len(widths) - 1)

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of this, in pixels: 8, as diffusers' pipelines want it, or a VAE cell."""
        return max(8, self.vae_scale_factor)

    @property
    def even_size_multiple(self) -> int:
        """Of sizes that every down block halves without a rest: VAE factor × stride of the UNet's blocks, in pixels."""
        return self.vae_scale_factor * 2 ** (len(self.unet_config["block_out_channels"]) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that diffusers' pipelines default to."""
        size = self._sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae_config.get("latent_channels", 4))

    @property
    def unet_channels(self) -> int:
        """Channels that the UNet takes: those of a latent; to inpaint, mask and masked picture's latent as well."""
        return int(self.unet_config.get("in_channels", 4))

    @property
    def only_inpaints(self) -> bool:
        """Whether the UNet takes a mask and a masked picture too."""
        return self.unet_channels != self.latent_channels

    @property
    def text_embedding_shape(self) -> tuple[int, int]:
        """(tokens, width) of a prompt's embedding."""
        width = sum(self._text_setting(encoder, "hidden_size") for encoder in self.text_encoders)
        tokens = self.read("tokenizer/tokenizer_config.json").get("model_max_length")
        return int(tokens or self._text_setting("text_encoder", "max_position_embeddings")), width

    @property
    def max_clip_skip(self) -> int:
        """Largest `clip_skip` that diffusers' `encode_prompt` takes; SDXL's counts from the layer before the last."""
        layers = min(self._text_setting(encoder, "num_hidden_layers") for encoder in self.text_encoders)
        return layers - 1 if self.family == "sdxl" else layers

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled embedding that SDXL's UNet takes beside the tokens; None for SD 1.5."""
        return self._text_setting("text_encoder_2", "projection_dim") if self.family == "sdxl" else None

    @property
    def guidance_embedding_width(self) -> int | None:
        """Width of the guidance embedding of a guidance-distilled UNet (LCM); None for every other UNet."""
        return self.unet_config.get("time_cond_proj_dim")

    @property
    def pipeline_defaults(self) -> tuple[int, float]:
        """(steps, guidance scale) that diffusers' pipeline call defaults to."""
        parameters = inspect.signature(self._pipeline_class.__call__).parameters
        return int(parameters["num_inference_steps"].default), float(parameters["guidance_scale"].default)

    @property
    def latent_scale(self) -> LatentScale:
        """Between what the autoencoder gives and what the UNet takes."""
        from .latent_encoding import LatentScale

        factor, mean, std = (self._vae_setting(name) for name in ("scaling_factor", "latents_mean", "latents_std"))
        return LatentScale(float(factor), mean, std)

    @property
    def strength_defaults(self) -> tuple[float, float]:
        """Strengths that diffusers' pipeline calls default to: of image to image, and of inpainting."""
        import diffusers

        calls = [inspect.signature(getattr(diffusers, name).__call__) for name in EDITING[self.family]]
        image_to_image, inpainting = (float(call.parameters["strength"].default) for call in calls)
        return image_to_image, inpainting

    def load_unet(self, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet in evaluation mode.

        Raises:
            CheckpointError: If its file lacks weights, as of every `load_…` that reads weights.
        """
        return self._load_network("unet", dtype).to(device)

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder in evaluation mode; in float32 if it overflows in float16 (`force_upcast`)."""
        return self._load_network("vae", self.vae_dtype(dtype)).to(device)

    def vae_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the autoencoder computes in where the rest is of this type."""
        import torch

        overflows = dtype == torch.float16 and self._vae_setting("force_upcast")
        return torch.float32 if overflows else dtype

    def load_text_pipeline(self, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
        """A pipeline of tokenisers and text encoders only: its `encode_prompt` is the reference."""
        encoders = {name: self._load_text_encoder(name, dtype) for name in self.text_encoders}
        return self._load_pipeline(("tokenizer", "tokenizer_2"), **encoders).to(device)

    def load_tokenizers(self) -> DiffusionPipeline:
        """A pipeline of tokenisers only."""
        return self._load_pipeline(("tokenizer", "tokenizer_2"))

    def empty_parts(self) -> dict[str, torch.nn.Module]:
        """The UNet and the text encoders by name, without weights (on the meta device): their modules and shapes."""
        return {part: self.empty_part(part) for part in ("unet", *self.text_encoders)}

    def empty_part(self, part: str) -> torch.nn.Module:
        """One of `networks` without weights, on the meta device."""
        from accelerate import init_empty_weights

        kind = self.network_class(part)
        with init_empty_weights():
            if part in self.text_encoders:
                return kind(self._text_config(part))
            return kind.from_config(self.read(f"{part}/config.json"))

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """Of the checkpoint's own scheduler, as diffusers' pipeline amends it (`steps_offset`, `clip_sample`)."""
        library, class_name = self.class_name("scheduler")
        if library != "diffusers":
            raise CheckpointError(
                f"{self.path}: its scheduler is {library}.{class_name}; served are those of diffusers"
            )
        try:
            scheduler = self._load_pipeline(("scheduler",)).scheduler
        except Exception as error:  # noqa: BLE001  schedulers of all kinds raise what they like
            raise CheckpointError(
                f"{self.path}: its scheduler {class_name} cannot be made: {first_sentence(error)}"
            ) from None
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        if (unwritten := config.get(DEFAULTED)) is not None:
            config[DEFAULTED] = sorted(unwritten)  # diffusers' order is another in each process
        return config

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the parts that have weights."""
        return ("unet", "vae", *self.text_encoders)

    @property
    def _sample_size(self) -> int | list[int]:
        """Of the UNet, as the pipelines put it right."""
        size = self.unet_config.get("sample_size")
        if size is None:
            return DEFAULT_SAMPLE_SIZES[self.family]
        written_by = version.parse(version.parse(self.unet_config.get("_diffusers_version", "1")).base_version)
        outdated = self.family == "sd15" and written_by < version.parse("0.9.0.dev0")
        return 64 if outdated and isinstance(size, int) and size < 64 else size

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the parts that encode texts."""
        return ("text_encoder", "text_encoder_2") if self.family == "sdxl" else ("text_encoder",)

    def _vae_setting(self, name: str) -> Any:
        """Of the autoencoder's configuration, what its class says where that lacks it."""
        taken = inspect.signature(self.network_class("vae").__init__).parameters
        return self.vae_config.get(name, taken[name].default if name in taken else None)

    def _text_config(self, encoder: str) -> CLIPTextConfig:
        from transformers import CLIPTextConfig

        self.read(f"{encoder}/config.json")  # raises in our words
        return CLIPTextConfig.from_pretrained(self.path / encoder)

    def _text_setting(self, encoder: str, name: str) -> int:
        """Of an encoder's configuration; transformers, which takes seconds to import, is asked for what that lacks."""
        written = self.read(f"{encoder}/config.json")
        if written.get("model_type") == "clip_text_model" and name in written:
            return int(written[name])
        return int(getattr(self._text_config(encoder), name))

    def _load_network(self, part: str, dtype: torch.dtype) -> Any:
        path = self._read_headers(part)
        network = self.network_class(part).from_pretrained(
            path, dtype=dtype, variant=weights_variant(path), use_safetensors=True
        )
        _raise_if_missing(missing_weights(network), path)
        return network.requires_grad_(False).eval()

    def _load_text_encoder(self, encoder: str, dtype: torch.dtype) -> PreTrainedModel:
        """As the pipeline would load it; transformers would give weights that the file lacks random values."""
        path = self._read_headers(encoder)
        options = {"variant": weights_variant(path), "use_safetensors": True, "output_loading_info": True}
        model, report = self.network_class(encoder).from_pretrained(path, dtype=dtype, **options)
        _raise_if_missing(sorted(report["missing_keys"]), path)
        return model

    def _read_headers(self, part: str) -> Path:
        """A part's directory, whose files are whole: of those that are not, libraries would not say which."""
        try:
            empty_tensors(self.weight_files(part))
        except WeightFileError as error:
            raise CheckpointError(str(error)) from None
        return self.path / part

    @property
    def _pipeline_class(self) -> type[DiffusionPipeline]:
        import diffusers

        return getattr(diffusers, self.pipeline_class_name)

    def _load_pipeline(self, parts: tuple[str, ...], **options: Any) -> DiffusionPipeline:
        unused = {name: None for name, value in self.index.items() if isinstance(value, list) and name not in parts}
        if self.family == "sd15":
            options["requires_safety_checker"] = False
        return self._pipeline_class.from_pretrained(self.path, **(unused | options))
