"""What an engine was built from and for: `NAME.json` beside `NAME.plan`, checked before the plan is loaded.

A plan is code for some kinds of GPUs and one release of TensorRT. TensorRT notices some mismatches at loading, with an
error that does not say what to do, and others never; here every one is refused with the command that builds it anew.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..common.filesystem import replace_text, sha256_of
from .flavours import DEFAULT_CAPABILITIES, FLAVOURS, TENSORRT, require_gpu

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
    precision: str
    profiles: Annotated[tuple[dict[str, Bounds], ...], Field(min_length=1)]
    weights: tuple[str, ...]
    constants: tuple[str, ...]
    digest: str
    sources: dict[str, str]
    plan_sha256: str
    plugins: tuple[str, ...]
    norms: str
    onnx: str
    options: tuple[str, ...]

    @field_validator("runtime")
    @classmethod
    def _is_known(cls, runtime: str) -> str:
        if runtime not in FLAVOURS:
            raise ValueError(f"runtime is {runtime!r}; known: {', '.join(FLAVOURS)}")
        return runtime

    def save(self, directory: Path) -> Path:
        """Writes `NAME.json`."""
        path = directory / f"{self.name}.json"
        replace_text(path, self.model_dump_json(indent=2) + "\n")
        return path

    @classmethod
    def read(cls, directory: Path, name: str, runtime: str = TENSORRT.name) -> EngineMetadata:
        """Reads `NAME.json`; `runtime` is that of who asks, for the message.

        Raises:
            EngineMismatchError: If there is none, or it is not what `save` writes.
        """
        path = directory / f"{name}.json"
        again = f"build it: {build_command('ONNX_DIRECTORY', directory, ('--runtime', runtime, '--network', name))}"
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise EngineMismatchError(f"{directory} has no engine {name}: {path.name} is missing; {again}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise EngineMismatchError(f"{path}: {place or 'the text'}: {first['msg']}; {again}") from None
        if found.name != name:
            raise EngineMismatchError(f"{path} describes the engine {found.name!r}; {again}")
        return found

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
        self.check_release(directory, flavour, machine.release)
        if self.gpu is not None and self.gpu != machine.gpu:
            self.refuse(directory, f"the GPU is {machine.gpu!r} here, and the plan was built for {self.gpu!r}")
        if not flavour.covers(self.capabilities, str(machine.compute_capability)):
            built = ", ".join(self.capabilities) or f"{', '.join(DEFAULT_CAPABILITIES)} and later"
            reason = f"the GPU's compute capability is {machine.compute_capability}, and the plan was built for {built}"
            wanted = ("--capability", str(machine.compute_capability)) if flavour.capabilities else ()
            self.refuse(directory, reason, *wanted)
        if digest is not None and digest != self.digest:
            raise EngineMismatchError(
                f"engine {self.name}: it was built from another checkpoint, another type of its weights or, of a text "
                f"encoder, under another release of transformers; export the checkpoint at hand (swiftdiffusion "
                f"export-onnx), then build it anew: {build_command('ONNX_DIRECTORY', directory, self.options)}"
            )
        plan = directory / f"{self.name}.plan"
        if not plan.is_file():
            self.refuse(directory, f"{plan} is missing")
        if sha256_of(plan) != self.plan_sha256:
            self.refuse(directory, f"{plan} is not the file that {self.name}.json describes")
        return plan

    def check_runtime(self, directory: Path, runtime: str) -> None:
        """Compares with what is to run it.

        Raises:
            EngineMismatchError: If the plan is another package's.
        """
        if self.runtime != runtime:
            self.refuse(
                directory, f"the runtime is {runtime}, and the plan is for {self.runtime}", "--runtime", runtime
            )

    def check_release(self, directory: Path, flavour: Flavour, release: str) -> None:
        """Compares with the release that is to run it, of the flavour that is."""
        self.check_runtime(directory, flavour.name)
        if self.release != release:
            self.refuse(directory, f"{flavour.title} is {release} here, and the plan is {self.release}'s")

    def check_sources(self, directory: Path, onnx: Path) -> None:
        """Compares the files of an ONNX directory with those that the plan was built from.

        Raises:
            EngineMismatchError: If one is missing or another one.
        """
        for name, built in self.sources.items():
            file = onnx / name
            if not file.is_file():
                self.refuse(directory, f"{file} is missing")
            if sha256_of(file) != built:
                self.refuse(directory, f"{file} is not the file that the plan was built from")

    def refuse(self, directory: Path, reason: str, *wanted: str) -> NoReturn:
        """Says why an engine cannot be used, and how to build one that can.

        Args:
            directory: Of the plan.
            reason: Why.
            *wanted: An option of `build-engines` and its value, in the place of those that it was built with.
        """
        pairs = zip(("", *self.options), self.options, strict=False)
        words = [word for before, word in pairs if not {before, word} & set(wanted[:1])]
        command = build_command(self.onnx, directory, (*words, *wanted))
        raise EngineMismatchError(f"engine {self.name}: {reason}; build it anew: {command}")


def build_command(onnx: str, engines: Path, options: tuple[str, ...] = ()) -> str:
    """The command line that builds engines."""
    return shlex.join(["swiftdiffusion", "build-engines", "--onnx", onnx, "--engines", str(engines), *options])
