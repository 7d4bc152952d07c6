"""Whether a repository's TensorRT engines are there and take what it will ask of them; load compares machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...python_backends.lora.files.modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from ...python_backends.networks.engine_constants import ENGINES
from ...python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError
from ...python_backends.tensorrt.tensor_names import VAE_DECODER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .serving_options import ServedPipeline


def shard_rows(served: ServedPipeline) -> int:
    """Most rows of a shard's call: both halves of guidance of a whole batch."""
    return 2 * served.options.max_batch_size


def controlnet_rows(users: Sequence[ServedPipeline]) -> int:
    """Most rows of a ControlNet's call: those of all shards of all pipelines."""
    return sum(shard_rows(user) * user.options.unet_shards for user in users)


def users_of(name: str, pipelines: Mapping[str, ServedPipeline]) -> list[ServedPipeline]:
    """The pipelines that may call a ControlNet."""
    return [served for served in pipelines.values() if name in {each.name for each in served.options.controlnets}]


def components_on_engines(served: ServedPipeline) -> tuple[str, ...]:
    """What engines evaluate of that which LoRAs adapt."""
    options = served.options
    if options.engines is None:
        return ()
    encoders = (TEXT_ENCODER, TEXT_ENCODER_2) if served.checkpoint.family == "sdxl" else (TEXT_ENCODER,)
    return (UNET, *(encoders if options.has_engines(options.text_encoder_gpu) else ()))


def wanted_engines(served: ServedPipeline, pipelines: Mapping[str, ServedPipeline]) -> dict[str, int]:
    """Engines that a pipeline's models run, and the most rows of their calls.

    Args:
        served: One that runs on engines.
        pipelines: All, which may share its ControlNets.
    """
    options = served.options
    rows = {name: shard_rows(served) for component in components_on_engines(served) for name in ENGINES[component]}
    for each in options.controlnets:
        if each.has_engine:
            rows[f"controlnet_{each.name}"] = controlnet_rows(users_of(each.name, pipelines))
    if options.vae_gpu is not None and not options.vae_float16:
        rows[VAE_DECODER] = 1
    return rows


def check_engines(pipelines: Mapping[str, ServedPipeline], only_controlnets: bool = False) -> None:
    """Looks at the engines of every pipeline that runs on engines.

    Args:
        pipelines: By the names of their public models.
        only_controlnets: Whether nothing else is served.

    Raises:
        EngineMismatchError: If one is missing or does not fit, with what is wanted.
    """
    networks = [each for served in pipelines.values() for each in served.options.controlnets]
    for name in {each.name for each in networks if each.gpus and each.url is None}:
        chosen = {(user.options.runtime, user.options.engines) for user in users_of(name, pipelines)}
        if len(chosen) > 1:
            said = " and ".join(sorted(f"{runtime} {engines or ''}".strip() for runtime, engines in chosen))
            raise EngineMismatchError(f"ControlNet {name} is shared by pipelines of runtimes {said}; wanted: one")
    for served in pipelines.values():
        if served.options.engines is not None:
            for name, rows in wanted_engines(served, pipelines).items():
                if name.startswith("controlnet_") or not only_controlnets:
                    _check(served, name, rows)


def _check(served: ServedPipeline, name: str, rows: int) -> None:
    engines, options = served.options.engines, served.options
    assert engines is not None
    metadata = EngineMetadata.read(engines, name, options.runtime)
    metadata.check_runtime(engines, options.runtime)
    if name != VAE_DECODER and metadata.precision != options.dtype:
        raise EngineMismatchError(
            f"engine {name} in {engines} computes in {metadata.precision}; wanted: {options.dtype}, as dtype says"
        )
    lacking = [count for count in range(1, rows + 1) if not metadata.holds(count)]
    if lacking:
        reason = f"it takes no batch of {lacking[0]} rows; wanted: 1 to {rows}, after max_batch_size and unet_shards"
        metadata.refuse(engines, reason, "--rows", f"1:{min(2, rows)}:{rows}")
    height, width = (side // served.checkpoint.vae_scale_factor for side in served.checkpoint.default_size)
    sizes = [profile["latents"] for profile in metadata.profiles if "latents" in profile]
    if sizes and not any(
        low[2] <= height <= high[2] and low[3] <= width <= high[3] for low, _, high in sizes if len(low) == 4
    ):
        reason = f"it takes no latents of {height}x{width}, as pictures of the default size have them"
        metadata.refuse(engines, reason, "--latents", f"{height}x{width}")
