"""What a repository needs of the machine: memory, shared memory, time. Needs no torch: the exporter has counted."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.processors import allowed_cores
from .checks import Check, Status
from .cuda_pools import LEAST_MIB, cuda_pools
from .free_memory import MIB, available_mib
from .gpus import free_gpu_mib
from .repository_weights import read_config
from .shared_memory import SHARED_MEMORY

PLAIN_MIB, TORCH_MIB, SHARED_MIB = 30, 370, 250
"""Measured with PyTorch 2.13 for CPUs: a process that computes nothing, one that imports PyTorch, diffusers and
transformers, and what is there once: their libraries and the server itself. Libraries of CUDA take more."""
TORCH_PARAMETERS = {"threads", "lora_host_bytes"}
"""One of them is a parameter of every model that imports PyTorch."""
REGION_MIB = 2
"""Of shared memory, per process, without residuals of ControlNets."""
PICTURES_MIB, EMBEDDINGS_MIB, SHARE = 1024, 256, 0.25
"""Most that control pictures and embeddings take, and each of the shared memory that there is."""

Speed = Callable[[], tuple[float, float] | None]
"""10⁹ floating-point operations per second of one thread of the CPU: in a UNet, in a VAE; None if that is not known."""


@dataclass(frozen=True)
class _Model:
    """A Python model of the repository; no GPUs: on the CPU."""

    name: str
    parameters: Mapping[str, str]
    gpus: tuple[int, ...]
    processes: int

    @property
    def needs_mib(self) -> int | None:
        """Of one process, where it computes; None where nobody has counted."""
        return int(self.parameters["needs_mib"]) if "needs_mib" in self.parameters else None

    @property
    def host_mib(self) -> int:
        """Of all its processes."""
        own = TORCH_MIB if TORCH_PARAMETERS & self.parameters.keys() else PLAIN_MIB
        return self.processes * (own + (0 if self.gpus else self.needs_mib or 0))


def check_needs(repository: Path, speed: Speed) -> Iterator[Check]:
    """A line for every model that computes, for the memory of all, for shared memory and for a step's time.

    Args:
        repository: As `swiftdiffusion export` wrote it.
        speed: Of this machine's CPU; called if a UNet is on it.
    """
    models = [_model(file) for file in sorted(repository.glob("*/config.pbtxt"))]
    models = [model for model in models if model.processes]
    if not any(model.needs_mib for model in models):
        return
    for model in models:
        if model.needs_mib is not None:
            yield Check(f"memory of {model.name}", Status.OK, _of_model(model))
    shared = _shared_mib(models)
    yield _memory(models, shared)
    yield from _gpu_memory(models, cuda_pools(repository))
    yield _shared_memory(shared)
    by_name = {model.name: model for model in models}
    for model in models:
        if model.name.endswith("denoiser"):
            yield from _times(by_name, model, speed)


def _model(config_file: Path) -> _Model:
    config = read_config(config_file)
    groups = config.instance_group if config.backend == "python" else ()
    return _Model(
        name=config_file.parent.name,
        parameters={name: value.string_value for name, value in config.parameters.items()},
        gpus=tuple(gpu for group in groups for gpu in group.gpus),
        processes=sum(group.count * max(1, len(group.gpus)) for group in groups),
    )


def _of_model(model: _Model) -> str:
    here = f"{model.needs_mib} MiB on GPU {' and '.join(map(str, model.gpus))}, " if model.gpus else ""
    each = model.host_mib // model.processes
    return f"{here}{each} MiB" + (f", {model.processes} times" if model.processes > 1 else "")


def _memory(models: Sequence[_Model], shared_mib: int) -> Check:
    needed, free = SHARED_MIB + sum(model.host_mib for model in models), available_mib()
    processes = sum(model.processes for model in models)
    found = f"{needed} MiB for {processes} processes and at most {shared_mib} MiB that they share; {free} MiB available"
    if needed > free:
        advice = "the server may be killed for memory: serve fewer shards or models, or on a larger machine"
        return Check("memory", Status.WARNING, found, advice)
    if needed + shared_mib > free:
        advice = "the processes fit, a full cache of LoRAs beside them does not: export with a smaller --lora-host-mib"
        return Check("memory", Status.WARNING, found, advice)
    return Check("memory", Status.OK, found)


def _gpu_memory(models: Sequence[_Model], pools: Mapping[int, int]) -> Iterator[Check]:
    needed: dict[int, int] = defaultdict(int)
    for model in models:
        for gpu in model.gpus:
            needed[gpu] += model.processes // len(model.gpus) * (model.needs_mib or 0)
    free = free_gpu_mib() if needed else {}
    for gpu, of_models in sorted(needed.items()):
        mib = of_models + pools.get(gpu, LEAST_MIB)
        found = f"{mib} MiB, of them {mib - of_models} between models, and CUDA's own"
        found += f"; {free[gpu]} MiB free" if gpu in free else ""
        if mib > free.get(gpu, mib):
            advice = "loading may fail: export with fewer models on this GPU"
            yield Check(f"memory of GPU {gpu}", Status.WARNING, found, advice)
        else:
            yield Check(f"memory of GPU {gpu}", Status.OK, found)


def _shared_memory(shared_mib: int) -> Check:
    free = shutil.disk_usage(SHARED_MEMORY).free // MIB
    found = f"at most {shared_mib} MiB, LoRAs and pictures as far as there is room; {free} MiB of {SHARED_MEMORY} free"
    if shared_mib <= free:
        return Check("shared memory", Status.OK, found)
    advice = "fewer LoRAs are kept ready: `docker run --shm-size`, or export with a smaller --lora-host-mib"
    return Check("shared memory", Status.WARNING, found, advice)


def _shared_mib(models: Sequence[_Model]) -> int:
    """Most that the server puts into shared memory, for pictures of the default size."""
    stores = [model.parameters for model in models if model.parameters.get("loras")]
    loras = max((int(store.get("lora_host_bytes", 0)) // MIB for store in stores), default=0)
    pictures = residuals = 0
    shards = sum("controlnet_urls" in model.parameters for model in models)
    for model in models:
        if "answer_mib" in model.parameters:  # residuals that a CPU gave are in the ControlNet's region and the shard's
            residuals += 0 if model.gpus else int(model.parameters["answer_mib"]) * (model.processes + shards)
            pictures = PICTURES_MIB
    embeddings = EMBEDDINGS_MIB if any("unet_shards" in model.parameters for model in models) else 0
    share = int(SHARE * shutil.disk_usage(SHARED_MEMORY).total / MIB)
    templates = max((int(model.parameters.get("template_host_bytes", 0)) // MIB for model in models), default=0)
    kept = loras + sum(min(each, share) for each in (pictures, embeddings, templates))
    return kept + residuals + REGION_MIB * sum(model.processes for model in models)


def _times(models: Mapping[str, _Model], denoiser: _Model, speed: Speed) -> Iterator[Check]:
    """Of a pipeline: a step with guidance, whose halves go to two shards at once, and decoding."""
    shards = [models[name] for name in denoiser.parameters["unet_shards"].split(",")]
    decoder = models.get(f"{denoiser.name.removesuffix('denoiser')}vae_decoder")
    yield from _time(f"a step of {denoiser.name}", shards[0], min(2, len(shards)), speed, 0)
    if decoder is not None:
        yield from _time(f"a picture of {decoder.name}", decoder, 1, speed, 1)


def _time(subject: str, model: _Model, at_once: int, speed: Speed, kind: int) -> Iterator[Check]:
    if "gflop" not in model.parameters:
        return
    gflop = float(model.parameters["gflop"])
    found = f"{gflop / 1000:.3g} TFLOP"
    measured = None if model.gpus else speed()
    if measured is not None:
        threads = min(at_once * int(model.parameters["threads"]), allowed_cores())
        seconds = gflop / measured[kind] / threads
        found += f", about {seconds:.2g} s on {threads} thread{'s' * (threads > 1)} of this machine (estimated)"
    yield Check(subject, Status.OK, found)
