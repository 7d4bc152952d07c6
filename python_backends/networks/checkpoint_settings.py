"""What a diffusers-format checkpoint's configurations say of it, and diffusers' classes where those say nothing."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from packaging import version

from .checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextConfig

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

DEFAULT_SAMPLE_SIZES = {"sdxl": 128, "sd15": 64}
"""Cells along a side of the latents of a UNet that says nothing of them."""


@dataclass(frozen=True)
class CheckpointSettings(CheckpointFiles):
    """Its family, sizes, channels and defaults; nothing of it reads weights.

    Attributes:
        path: The directory that holds `model_index.json`.
    """

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

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the parts that encode texts."""
        return ("text_encoder", "text_encoder_2") if self.family == "sdxl" else ("text_encoder",)

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

    @property
    def _pipeline_class(self) -> type[DiffusionPipeline]:
        import diffusers

        return getattr(diffusers, self.pipeline_class_name)
