"""Whether a repository's TensorRT engines are there and take what it will ask of them; load compares machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...python_backends.tensorrt.metadata import EngineMetadata, EngineMismatchError
from ...python_backends.tensorrt.tensor_names import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .serving_options import ServedControlNet, ServedPipeline


def shard_rows(served: ServedPipeline) -> int:
    """Most rows of a shard's call: both halves of guidance of a whole batch."""
    return 2 * served.options.max_batch_size


def controlnet_rows(users: Sequence[ServedPipeline]) -> int:
    """Most rows of a ControlNet's call: those of all shards of all pipelines."""
    return sum(shard_rows(user) * user.options.unet_shards for user in users)


def users_of(name: str, pipelines: Mapping[str, ServedPipeline]) -> list[ServedPipeline]:
    """The pipelines that may call a ControlNet."""
    return [served for served in pipelines.values() if name in {each.name for each in served.options.controlnets}]


def check_engines(pipelines: Mapping[str, ServedPipeline], only_controlnets: bool = False) -> None:
    """Looks at the engines of every pipeline with runtime `tensorrt`.

    Args:
        pipelines: By the names of their public models.
        only_controlnets: Whether UNets are not served.

    Raises:
        EngineMismatchError: If one is missing or does not fit, with what is wanted.
    """
    networks: dict[str, ServedControlNet] = {}
    for served in pipelines.values():
        networks |= {each.name: each for each in served.options.controlnets if each.gpus and each.url is None}
        if served.options.engines is not None and not only_controlnets:
            for half in (ENCODER, DECODER):
                _check(served.options.engines, half, served.options.dtype, shard_rows(served))
    for name, network in networks.items():
        users = users_of(name, pipelines)
        chosen = {(user.options.runtime, user.options.engines) for user in users}
        if len(chosen) > 1:
            said = " and ".join(sorted(f"{runtime} {engines or ''}".strip() for runtime, engines in chosen))
            raise EngineMismatchError(f"ControlNet {name} is shared by pipelines of runtimes {said}; wanted: one")
        engines = users[0].options.engines
        if engines is not None and not network.control_modes:  # a union runs in PyTorch
            _check(engines, f"controlnet_{name}", users[0].options.dtype, controlnet_rows(users))


def _check(engines: Path, name: str, dtype: str, rows: int) -> None:
    metadata = EngineMetadata.read(engines, name)
    if metadata.precision != dtype:
        raise EngineMismatchError(
            f"engine {name} in {engines} computes in {metadata.precision}; wanted: {dtype}, as dtype says"
        )
    lacking = [count for count in range(1, rows + 1) if not metadata.holds(count)]
    if lacking:
        raise EngineMismatchError(
            f"engine {name} in {engines} takes no batch of {lacking[0]} rows; wanted: 1 to {rows}, after "
            f"max_batch_size and unet_shards: swiftdiffusion build-engines --rows 1:2:{rows}"
        )
