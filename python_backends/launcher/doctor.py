"""What a server needs from the machine, checked one by one."""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from ...kernels.triton_language import MissingTritonError, require_triton
from ..tensorrt.flavours import FLAVOURS, Flavour, TensorRTUnavailableError
from ..tensorrt.metadata import EngineMetadata, EngineMismatchError, Machine
from .binary import ServerBinary, find_server_binary
from .checks import Check, Status
from .errors import LauncherError, PortBusyError, ServerBinaryNotFoundError
from .gpus import gpu_names
from .kernel_compiler import check_kernel_compiler
from .needs import check_needs
from .ports import check_ports
from .python_stub import PYTHON_VERSION
from .repository_weights import check_weights, models_of_runtime, wanted_gpus
from .running import runtime_directories
from .shared_memory import SHARED_MEMORY
from .watch_status import WatchStatus

MIB = 1 << 20
SHARED_MEMORY_NEEDED = 64 * MIB  # a dozen instances at their start, and tensors of a few pictures
WHEEL_GLIBC = (2, 35)
PYTHON_VERSIONS = ("3.11", "3.12")  # diffusers needs the first; numpy < 2 has no wheels after the last
DEFAULT_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
_PACKAGE = "swiftdiffusion"


def run_checks(repository: Path | None) -> Iterator[Check]:
    """All checks, in the order in which a start would meet their subjects.

    Args:
        repository: model repository whose weights are looked for; None leaves them out.
    """
    yield _python()
    yield from _server()
    yield _gpu()
    yield _shared_memory()
    yield from _packages()
    if repository is not None:
        yield from repository_checks(repository)
        yield from check_needs(repository, _cpu_speed)
    yield from _ports()
    yield from _down()


def repository_checks(repository: Path) -> Iterator[Check]:
    """Of what a model repository refers to: weights, GPUs, packages."""
    yield from check_weights(repository)
    yield from _placed(wanted_gpus(repository))
    yield from _runtimes(repository)


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if PYTHON_VERSION in PYTHON_VERSIONS:
        return Check("Python", Status.OK, found)
    return Check("Python", Status.MISSING, found, f"make the venv with Python {' or '.join(PYTHON_VERSIONS)}")


def _server() -> Iterator[Check]:
    try:
        binary = find_server_binary()
    except LauncherError as error:
        yield Check("tritonserver", Status.MISSING, "none", str(error))
        return
    yield Check("tritonserver", Status.OK, f"{binary.path} ({binary.source})")
    yield _stub(binary)
    if binary.wheel is not None:
        yield _glibc()


def _stub(binary: ServerBinary) -> Check:
    subject = "Python backend stub"
    if binary.wheel is None and binary.stub() is None:
        return Check(subject, Status.WARNING, "not beside the server", "pass --backend-directory to tritonserver")
    try:
        binary.check(os.environ)
    except (LauncherError, OSError) as error:
        return Check(subject, Status.MISSING, "cannot be used", str(error))
    return Check(subject, Status.OK, f"for Python {PYTHON_VERSION}, its libraries are there")


def _glibc() -> Check:
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    needed = ".".join(map(str, WHEEL_GLIBC))
    if name == "glibc" and numbers >= WHEEL_GLIBC:
        return Check("glibc", Status.OK, version)
    advice = f"the wheel's server needs glibc {needed} or newer: a newer distribution, or NVIDIA's Triton image"
    return Check("glibc", Status.MISSING, f"{name} {version}".strip() or "not glibc", advice)


def _gpu() -> Check:
    listed, usable = list(gpu_names().values()), _torch_gpus()
    if listed and usable == len(listed):
        return Check("GPU", Status.OK, ", ".join(listed))
    if listed:
        advice = "install a torch built for the driver's CUDA version (`python -c 'import torch; torch.cuda.init()'`)"
        return Check("GPU", Status.WARNING, f"{', '.join(listed)}; torch can use {usable}", advice)
    return Check("GPU", Status.WARNING, "none", "the CPU works; for a GPU, `nvidia-smi` must list it")


def _placed(wanted: Mapping[int, Sequence[str]]) -> Iterator[Check]:
    """A check for each GPU that a model is placed on."""
    there = _torch_gpus()
    for gpu, models in wanted.items():
        if gpu < there:
            yield Check(f"GPU {gpu}", Status.OK, f"for {', '.join(models)}")
        else:
            has = f"this machine has {there or 'none'} that torch can use"
            advice = "export with GPUs that are there, or serve where they are"
            yield Check(f"GPU {gpu}", Status.MISSING, f"wanted by {', '.join(models)}; {has}", advice)


def _runtimes(repository: Path) -> Iterator[Check]:
    """The Triton language with its compiler, if anything is on a GPU; what runs engines, if anything does."""
    gpus = wanted_gpus(repository)
    on_gpus = sorted({model for models in gpus.values() for model in models})
    wanted: dict[str, tuple[Iterable[str], Callable[[], ModuleType]]] = {"Triton language": (on_gpus, _require_triton)}
    for flavour in FLAVOURS.values():
        engines = models_of_runtime(repository, flavour.name)
        used = [gpu for gpu, placed in gpus.items() if not engines.keys().isdisjoint(placed)]
        wanted[flavour.title] = engines, partial(_require_flavour, flavour, used, set(engines.values()))
    for subject, (models, require) in wanted.items():
        if models:
            try:
                yield Check(subject, Status.OK, f"{require().__version__}, for {', '.join(models)}")
            except (MissingTritonError, TensorRTUnavailableError, EngineMismatchError) as error:
                yield Check(subject, Status.MISSING, f"wanted by {', '.join(models)}", str(error))
    if on_gpus:
        yield from check_kernel_compiler(", ".join(on_gpus))


def _require_flavour(flavour: Flavour, gpus: Sequence[int], directories: Collection[Path]) -> ModuleType:
    """The package, GPUs that it knows, and engines for them; of GPUs that are not there something else tells."""
    found = flavour.require()
    there = [gpu for gpu in gpus if gpu < _torch_gpus()]
    machines = [Machine.here(flavour, gpu) for gpu in there]
    for directory in directories:
        names = sorted(path.stem for path in directory.glob("*.plan"))
        if not names:
            raise EngineMismatchError(f"{directory} has no engines: get them, or export again")
        for name in names:
            metadata = EngineMetadata.read(directory, name, flavour.name)
            metadata.check_release(directory, flavour, found.__version__)
            for machine in machines:
                metadata.check(directory, flavour, machine)
    return found


def _require_triton() -> ModuleType:
    require_triton("what runs on a GPU")
    return importlib.import_module("triton")


def _torch_gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


@cache
def _cpu_speed() -> tuple[float, float] | None:
    """As `networks.speed` measures it, in a process of its own; None where PyTorch does not work."""
    command = [sys.executable, "-m", f"{_PACKAGE}.python_backends.networks.speed"]
    measured = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if measured.returncode != 0:
        return None
    unet, vae = json.loads(measured.stdout)
    return float(unet), float(vae)


def _shared_memory() -> Check:
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f"{usage.free // MIB} of {usage.total // MIB} MiB free"
    if usage.free >= SHARED_MEMORY_NEEDED:
        return Check(str(SHARED_MEMORY), Status.OK, found)
    advice = (
        f"backends need {SHARED_MEMORY_NEEDED // MIB} MiB and more: `docker run --shm-size=2g`, or remount it larger"
    )
    return Check(str(SHARED_MEMORY), Status.MISSING, found, advice)


def _packages() -> Iterator[Check]:
    """Everything that the package itself and its `server` extra require, by its own metadata."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(_PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "server"}):
            continue
        if requirement.name == "nvidia-pytriton" and _server_is_installed():
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, Status.MISSING, "not installed", f"`pip install '{wanted}'`")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, Status.OK, version)
        else:
            yield Check(requirement.name, Status.MISSING, version, f"`pip install '{wanted}'`")


def _server_is_installed() -> bool:
    try:
        return find_server_binary().wheel is None
    except ServerBinaryNotFoundError:
        return False


def _down() -> Iterator[Check]:
    """Models of servers that run, and do not load again."""
    for server, runtime in runtime_directories():
        status = WatchStatus.read(runtime)
        for model, down in () if status is None else status.down.items():
            advice = f"it is tried again; {down.tries} times it did not load"
            yield Check(f"tritonserver, pid {server}", Status.WARNING, f"{model} is down: {down.reason}", advice)


def _ports() -> Iterator[Check]:
    for flag, port in DEFAULT_PORTS.items():
        try:
            check_ports("127.0.0.1", {flag: port})
        except PortBusyError as error:
            yield Check(f"port {port}", Status.WARNING, "in use", str(error))
        else:
            yield Check(f"port {port}", Status.OK, "free")
