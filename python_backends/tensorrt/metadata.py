"""What an engine was built from and for: `NAME.json` beside `NAME.plan`, checked before the plan is loaded.

A plan is code for some kinds of GPUs and one release of TensorRT. TensorRT notices some mismatches at loading, with an
error that does not say what to do, and others never; here every one is refused with the command that builds it anew.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ..common.filesystem import sha256_of
from .flavours import DEFAULT_CAPABILITIES, require_gpu

if TYPE_CHECKING:
    from pathlib import Path

    from .flavours import Flavour

Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape of an input."""


class EngineMismatchError(RuntimeError):
    """A plan that cannot be used here; the message says why, and with which command to build it anew."""


@dataclass(frozen=True)
class Machine:
    """What a plan may be bound to.

    Attributes:
        gpu: Name, such as `NVIDIA H100 80GB HBM3`; None without one, where engines are built for others.
        compute_capability: Its own, such as `9.0`.
        release: Of TensorRT, such as `11.4.0.106`.
    """

    gpu: str | None
    compute_capability: str | None
    release: str

    @classmethod
    def here(cls, flavour: Flavour, device: int) -> Machine:
        """This process's GPU of that number, and its TensorRT.

        Raises:
            TensorRTUnavailableError: Without TensorRT or the GPU, or with one that it does not know.
        """
        import torch

        release = flavour.require().__version__
        require_gpu(device)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        flavour.check_capability(capability)
        return cls(torch.cuda.get_device_name(device), capability, release)


class EngineMetadata(BaseModel):
    """What an engine was built from and for.

    Attributes:
        name: Of the network; the files are `NAME.plan` and `NAME.json`.
        runtime: `tensorrt` or `tensorrt-rtx`.
        release: Of that package.
        gpu: Name of the GPU that it was built on and for; None if any of its compute capabilities does.
        capabilities: Compute capabilities that it was built for; none: TensorRT-RTX' own choice.
        torch: Release of PyTorch.
        triton: Release of the Triton language that compiled the plugins; None without plugins.
        precision: Of its weights: `float16`, `bfloat16` or `float32`.
        profiles: Input → bounds, of each optimisation profile; the first that holds a call's shapes serves it.
        weights: Inputs besides, which are weights of the network.
        constants: Weights that LoRAs adapt, and that it holds as they were.
        digest: `networks.digests.weights_digest` of the network.
        sources: File of the ONNX directory → SHA-256.
        plan_sha256: Of the plan.
        plugins: Operators that are this project's kernels.
        norms: What norms' nodes mean where they are no plugins.
        onnx: The ONNX directory.
        options: Of `build-engines`, besides the directories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    runtime: str
    release: str
    gpu: str | None
    capabilities: tuple[str, ...]
    torch: str
    triton: str | None
    precision: str
    profiles: tuple[dict[str, Bounds], ...]
    weights: tuple[str, ...]
    constants: tuple[str, ...]
    digest: str
    sources: dict[str, str]
    plan_sha256: str
    plugins: tuple[str, ...]
    norms: str
    onnx: str
    options: tuple[str, ...]

    def save(self, directory: Path) -> Path:
        """Writes `NAME.json`."""
        path = directory / f"{self.name}.json"
        path.write_text(self.model_dump_json(indent=2) + "\n", "utf-8")
        return path

    @classmethod
    def read(cls, directory: Path, name: str) -> EngineMetadata:
        """Reads `NAME.json`.

        Raises:
            EngineMismatchError: If there is none, or it is not what `save` writes.
        """
        path = directory / f"{name}.json"
        again = f"build it: {rebuild_command('ONNX_DIRECTORY', directory)}"
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            raise EngineMismatchError(f"{directory} has no engine {name}: {path.name} is missing; {again}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise EngineMismatchError(f"{path}: {place or 'the text'}: {first['msg']}; {again}") from None

    def holds(self, rows: int) -> bool:
        """Whether some optimisation profile takes batches of so many rows."""
        return any(
            all(low[0] <= rows <= high[0] for low, _, high in profile.values() if low) for profile in self.profiles
        )

    def check(self, directory: Path, flavour: Flavour, machine: Machine, digest: str | None = None) -> Path:
        """Compares with the machine, the network, and the files beside the plan.

        Args:
            directory: Of the plan.
            flavour: What is about to run it.
            machine: Where.
            digest: Of the network whose place it takes; None: nothing is known of it.

        Returns:
            The plan's path.

        Raises:
            EngineMismatchError: If the plan is for something else, or has changed.
        """
        self.check_runtime(directory, flavour.name)
        if self.release != machine.release:
            self._refuse(directory, f"{flavour.title} is {machine.release} here, and the plan is {self.release}'s")
        if self.gpu is not None and self.gpu != machine.gpu:
            self._refuse(directory, f"the GPU is {machine.gpu!r} here, and the plan was built for {self.gpu!r}")
        if not flavour.covers(self.capabilities, str(machine.compute_capability)):
            built = ", ".join(self.capabilities) or f"{', '.join(DEFAULT_CAPABILITIES)} and later"
            reason = f"the GPU's compute capability is {machine.compute_capability}, and the plan was built for {built}"
            self._refuse(directory, reason)
        if digest is not None and digest != self.digest:
            self._refuse(directory, "it was built from another checkpoint, or another type of its weights")
        plan = directory / f"{self.name}.plan"
        if not plan.is_file():
            self._refuse(directory, f"{plan} is missing")
        if sha256_of(plan) != self.plan_sha256:
            self._refuse(directory, f"{plan} is not the file that {self.name}.json describes")
        return plan

    def check_runtime(self, directory: Path, runtime: str) -> None:
        """Compares with what is to run it.

        Raises:
            EngineMismatchError: If the plan is another package's.
        """
        if self.runtime != runtime:
            self._refuse(directory, f"the runtime is {runtime}, and the plan is for {self.runtime}")

    def check_sources(self, directory: Path) -> None:
        """Compares the files of a directory with those that the plan was built from.

        Raises:
            EngineMismatchError: If one is missing or has changed.
        """
        for name, built in self.sources.items():
            file = directory / name
            if not file.is_file():
                self._refuse(directory, f"{file} is missing")
            if sha256_of(file) != built:
                self._refuse(directory, f"{file} has changed since the plan was built from it")

    def _refuse(self, directory: Path, reason: str) -> None:
        command = rebuild_command(self.onnx, directory, self.options)
        raise EngineMismatchError(f"engine {self.name}: {reason}; build it anew: {command}")


def rebuild_command(onnx: str, engines: Path, options: tuple[str, ...] = ()) -> str:
    """The command line that builds engines."""
    return shlex.join(["swiftdiffusion", "build-engines", "--onnx", onnx, "--engines", str(engines), *options])
