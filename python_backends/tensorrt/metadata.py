"""What an engine was built from and for: `NAME.json` beside `NAME.plan`, checked before the plan is loaded.

A plan is code for one kind of GPU and one release of TensorRT. TensorRT notices some mismatches at loading, with an
error that does not say what to do, and others never; here every one is refused with the command that builds it anew.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ..common.filesystem import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape of an input."""


class EngineMismatchError(RuntimeError):
    """A plan that cannot be used here; the message says why, and with which command to build it anew."""


@dataclass(frozen=True)
class Machine:
    """What a plan is bound to.

    Attributes:
        gpu: Name, such as `NVIDIA H100 80GB HBM3`.
        compute_capability: Such as `9.0`.
        tensorrt: Release, such as `11.4.0.106`.
    """

    gpu: str
    compute_capability: str
    tensorrt: str

    @classmethod
    def here(cls, device: int) -> Machine:
        """This process's GPU of that number, and its TensorRT."""
        import torch

        from .versions import require_gpu, require_tensorrt

        release = require_tensorrt().__version__
        require_gpu(device)
        major, minor = torch.cuda.get_device_capability(device)
        return cls(torch.cuda.get_device_name(device), f"{major}.{minor}", release)


class EngineMetadata(BaseModel):
    """What an engine was built from and for.

    Attributes:
        name: Of the network; the files are `NAME.plan`, `NAME.json` and, where LoRAs adapt it, `NAME.weights.json`.
        gpu: See Machine.
        compute_capability: See Machine.
        tensorrt: See Machine.
        driver: Release of the GPU's driver.
        torch: Release of PyTorch.
        triton: Release of the Triton language that compiled the plugins; None without plugins.
        precision: Of its weights: `float16`, `bfloat16` or `float32`.
        profiles: Input → bounds, of each optimisation profile; the first that holds a call's shapes serves it.
        sources: File of the ONNX directory → SHA-256.
        plan_sha256: Of the plan.
        plugins: Operators that are this project's kernels.
        refittable: Initialisers that can be replaced.
        onnx: The ONNX directory.
        options: Of `build-engines`, besides the directories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpu: str
    compute_capability: str
    tensorrt: str
    driver: str
    torch: str
    triton: str | None
    precision: str
    profiles: tuple[dict[str, Bounds], ...]
    sources: dict[str, str]
    plan_sha256: str
    plugins: tuple[str, ...]
    refittable: tuple[str, ...]
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

    def check(self, directory: Path, machine: Machine) -> Path:
        """Compares with the machine, and with the files beside the plan.

        Args:
            directory: Of the plan.
            machine: Where it is about to run.

        Returns:
            The plan's path.

        Raises:
            EngineMismatchError: If the plan is for something else, or it or the map of its weights has changed.
        """
        for field in ("gpu", "compute_capability", "tensorrt"):
            built, found = getattr(self, field), getattr(machine, field)
            if built != found:
                self._refuse(directory, f"{field} is {found!r} here, and the plan was built for {built!r}")
        plan = directory / f"{self.name}.plan"
        if not plan.is_file():
            self._refuse(directory, f"{plan} is missing")
        if sha256_of(plan) != self.plan_sha256:
            self._refuse(directory, f"{plan} is not the file that {self.name}.json describes")
        if self.refittable:
            self.check_sources(directory, [f"{self.name}.weights.json"])
        return plan

    def check_sources(self, directory: Path, names: Iterable[str] | None = None) -> None:
        """Compares files with those that the plan was built from.

        Args:
            directory: Where they lie.
            names: Which of `sources`; None for all. Names that are not among them are passed over.

        Raises:
            EngineMismatchError: If one is missing or has changed.
        """
        for name in self.sources if names is None else names:
            built, file = self.sources.get(name), directory / name
            if built is None:
                continue
            if not file.is_file():
                self._refuse(directory, f"{file} is missing")
            if sha256_of(file) != built:
                self._refuse(directory, f"{file} has changed since the plan was built from it")

    def _refuse(self, directory: Path, reason: str) -> None:
        command = rebuild_command(self.onnx, directory, self.options)
        raise EngineMismatchError(f"engine {self.name}: {reason}; build it here: {command}")


def rebuild_command(onnx: str, engines: Path, options: tuple[str, ...] = ()) -> str:
    """The command line that builds engines."""
    return shlex.join(["swiftdiffusion", "build-engines", "--onnx", onnx, "--engines", str(engines), *options])
