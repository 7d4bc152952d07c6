"""What is served and where: the exporter's decisions, once they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...python_backends.request.rules import RequestRules

if TYPE_CHECKING:
    from pathlib import Path

    from ...python_backends.networks.checkpoint import Checkpoint


@dataclass(frozen=True)
class ServedControlNet:
    """A ControlNet of the repository.

    Attributes:
        name: What requests call it; its model is `controlnet_NAME`.
        path: A diffusers directory, or a safetensors file.
        gpus: An instance for each; empty: on the CPU.
        processes: Instances on the CPU.
        url: `grpc://HOST:PORT` of the Triton server that runs it instead of this one, or None.
        control_modes: Of a ControlNetUnion, how many there are; else 0.
        pools: Whether it averages its residuals over the picture.
    """

    name: str
    path: Path
    gpus: tuple[int, ...] = ()
    processes: int = 1
    url: str | None = None
    control_modes: int = 0
    pools: bool = False

    @property
    def has_engine(self) -> bool:
        """Whether an engine may take its place: on a GPU of this server; a union runs in PyTorch."""
        return bool(self.gpus) and self.url is None and not self.control_modes


@dataclass(frozen=True)
class ServingOptions:
    """How a checkpoint is served.

    Attributes:
        unet_shards: Number of UNet shards.
        unet_gpus: GPU of each shard, cyclically. Empty: on the CPU.
        threads: OpenMP threads of each CPU backend.
        dtype: What GPUs compute in: `float32`, `float16` or `bfloat16`. On the CPU it is float32.
        max_batch_size: Requests in one denoiser's running batch.
        steps: Default steps.
        guidance_scale: Default guidance.
        max_size: Largest height and width, in pixels.
        loras: Directory of the LoRA catalogue; None for a server without LoRAs.
        lora_bound: Default k of bounded asynchronous loading; 0 is exact.
        lora_host_bytes: Most bytes of canonical LoRAs in shared memory.
        lora_disk_bytes: Most bytes of fetched LoRA files on disk.
        template_host_bytes: Most bytes of what is known of edited pictures in shared memory; 0: nothing.
        template_disk_bytes: The same on disk, beside that.
        controlnets: ControlNets that requests may name.
        controlnet_timeout_s: Longest time that a shard waits for one, per step.
        text_encoder_gpu: GPU of the text encoders; None: the CPU.
        vae_gpu: GPU of the VAE; None: the CPU.
        vae_float16: Whether the VAE decodes in float16 whatever diffusers' pipelines do.
        runtime: What evaluates networks: see `networks.runtimes`.
        engines: Directory of the TensorRT engines.
        fp8: Whether linear layers of UNets multiply 8-bit floats.
        ignored_parameters: Regular expression of request parameters that are let pass; empty for none.
        slo_ms: What requests without a TIMEOUT_MS are refused beyond, in milliseconds; 0: never.
        slo_factor: The same, in times of what such a request takes alone; 0: never.
    """

    unet_shards: int
    unet_gpus: tuple[int, ...]
    threads: int
    dtype: str
    max_batch_size: int
    steps: int
    guidance_scale: float
    max_size: int
    loras: Path | None = None
    lora_bound: int = 0
    lora_host_bytes: int = 4 * 2**30
    lora_disk_bytes: int = 64 * 2**30
    template_host_bytes: int = 2**32
    template_disk_bytes: int = 0
    controlnets: tuple[ServedControlNet, ...] = ()
    controlnet_timeout_s: float = 60.0
    text_encoder_gpu: int | None = None
    vae_gpu: int | None = None
    vae_float16: bool = False
    runtime: str = "torch"
    engines: Path | None = None
    fp8: bool = False
    ignored_parameters: str = ""
    slo_ms: int = 0
    slo_factor: float = 0.0

    def unet_gpu(self, shard: int) -> int | None:
        """Where a shard runs; None: the CPU."""
        return self.unet_gpus[shard % len(self.unet_gpus)] if self.unet_gpus else None

    def has_engines(self, gpu: int | None) -> bool:
        """Whether engines take the place of networks there."""
        return self.engines is not None and gpu is not None

    def dtype_on(self, gpu: int | None) -> str:
        """What a model computes in."""
        return "float32" if gpu is None else self.dtype

    def request_rules(self, checkpoint: Checkpoint) -> RequestRules:
        """Defaults and limits of requests.

        Raises:
            ValueError: If a default is beyond the limits, or the checkpoint's own scheduler cannot be served.
        """
        from ...python_backends.engine.schedulers import SchedulerError, evaluations_of, schedulers_for

        own = checkpoint.scheduler_config
        try:
            schedulers = schedulers_for(own, checkpoint.family == "sdxl")
        except SchedulerError as error:
            raise SchedulerError(f"{checkpoint.path}: {error}") from None
        evaluations = evaluations_of(own)
        height, width = checkpoint.default_size
        img2img_strength, inpaint_strength = checkpoint.strength_defaults
        return RequestRules(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=height,
            width=width,
            # engines are built for one chunk, and for sizes that the UNet halves without a rest
            size_multiple=checkpoint.even_size_multiple if self.engines else checkpoint.size_multiple,
            max_size=self.max_size,
            own_scheduler=own["_class_name"],
            own_per_step=evaluations.per_step,
            own_more=evaluations.more,
            halves=2 if checkpoint.guidance_embedding_width is None else 1,
            schedulers=schedulers,
            lora_bound=self.lora_bound,
            max_clip_skip=checkpoint.max_clip_skip,
            max_prompt_chunks=1 if self.engines else RequestRules.max_prompt_chunks,
            ignored_parameters=self.ignored_parameters,
            slo_ms=self.slo_ms,
            slo_factor=self.slo_factor,
            latent_cell=checkpoint.vae_scale_factor,
            img2img_strength=img2img_strength,
            inpaint_strength=inpaint_strength,
            only_inpaints=checkpoint.only_inpaints,
        )


@dataclass(frozen=True)
class ServedPipeline:
    """A checkpoint and how it is served."""

    checkpoint: Checkpoint
    options: ServingOptions
