"""TensorRT and TensorRT-RTX: one interface in two packages, and what differs between them."""

from __future__ import annotations

import importlib
import logging
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from types import ModuleType


class TensorRTUnavailableError(RuntimeError):
    """A package, its release or the GPU is not one that is used; the message says what to do."""


@dataclass(frozen=True)
class Flavour:
    """A package that builds and runs engines.

    Attributes:
        name: Of the runtime.
        title: As its makers write it.
        package: What is imported.
        releases: That are used.
        install: How to get it.
        plugins: Whether operators of others can be built into engines.
        timing_cache: Whether building times kernels, which is worth keeping.
        capabilities: Compute capabilities that engines can be built for, on any machine; none: that of the GPU which
            builds them, and no GPU but its like runs them.
        builder_flags: Of every build.
        compiles_at_load: Whether kernels are finished where they run, for each shape: it keeps them in a runtime cache,
            and makes CUDA graphs itself.
    """

    name: str
    title: str
    package: str
    releases: SpecifierSet
    install: str
    plugins: bool = False
    timing_cache: bool = False
    capabilities: tuple[str, ...] = ()
    builder_flags: tuple[str, ...] = ()
    compiles_at_load: bool = False

    def require(self) -> ModuleType:
        """The package, of a release that is used.

        Raises:
            TensorRTUnavailableError: Without it, or with another release.
        """
        try:
            found = importlib.import_module(self.package)
        except ImportError as error:
            raise TensorRTUnavailableError(f"{self.title} is missing ({error}): {self.install}") from error
        self.check_release(found.__version__)
        check_numpy(found.__version__, version("numpy"))
        return found

    def check_release(self, release: str) -> None:
        """Lets the releases pass that are used.

        Args:
            release: The package's `__version__`, such as `11.4.0.106`.

        Raises:
            TensorRTUnavailableError: For every other one.
        """
        try:
            is_used = self.releases.contains(Version(release), prereleases=True)
        except InvalidVersion:
            is_used = False
        if not is_used:
            raise TensorRTUnavailableError(f"{self.title} is {release!r}; wanted: {self.releases}; {self.install}")

    def check_capability(self, capability: str) -> None:
        """Lets compute capabilities pass that the package knows, before it is asked.

        Args:
            capability: Of a GPU, such as `8.9`.

        Raises:
            TensorRTUnavailableError: For every other one.
        """
        if self.capabilities and capability not in self.capabilities and not _is_newer(capability):
            raise TensorRTUnavailableError(
                f"{self.title} has no engines for GPUs of compute capability {capability}; allowed: "
                f"{', '.join(self.capabilities)} and later; such a GPU is served by --runtime torch, or tensorrt"
            )

    def covers(self, built: tuple[str, ...], capability: str) -> bool:
        """Whether engines run on a GPU.

        Args:
            built: Compute capabilities that they were built for; none: the package's own choice.
            capability: Of the GPU.
        """
        return capability in built or (not built and (capability in DEFAULT_CAPABILITIES or _is_newer(capability)))

    @property
    def log(self) -> Any:
        """Where the package logs: an `ILogger` that logs here at INFO, and tells errors to who asks `said()`."""
        return _log(self)


DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""TensorRT-RTX' own choice, with all from the last one on."""

TENSORRT = Flavour(
    name="tensorrt",
    title="TensorRT",
    package="tensorrt",
    releases=SpecifierSet(">=10.16,!=11.0.*,!=11.1.*,!=11.2.*,!=11.3.*"),  # nobody has looked at these
    install="pip install 'tensorrt-cu13>=11.4' (NVIDIA's own package index has the libraries)",
    plugins=True,
    timing_cache=True,
)
TENSORRT_RTX = Flavour(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    package="tensorrt_rtx",
    releases=SpecifierSet(">=1.7,<1.8"),
    install="pip install 'swiftdiffusion[onnx,tensorrt-rtx]'",
    capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    builder_flags=("REQUIRE_USER_ALLOCATION",),
    compiles_at_load=True,
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
"""By the names of their runtimes."""


def check_numpy(release: str, numpy: str) -> None:
    """Refuses TensorRT 10's Python plugins under a numpy that no longer makes a number of an array with one."""
    if release.startswith("10.") and Version(numpy) >= Version("2.4"):
        raise TensorRTUnavailableError(
            f"TensorRT {release} fails under numpy {numpy}; wanted: numpy<2.4, or {TENSORRT.install}"
        )


def require_gpu(device: int = 0) -> None:
    """Raises a TensorRTUnavailableError, if PyTorch sees no GPU of that number."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device >= count:
        raise TensorRTUnavailableError(
            f"GPU {device} is wanted for engines, PyTorch {torch.__version__} sees {count}: engines run on GPUs, and "
            "those of runtime tensorrt are built there"
        )


@cache  # the package keeps the first that it is given
def _log(flavour: Flavour) -> Any:
    trt, logger = flavour.require(), logging.getLogger(__name__)
    errors = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
    told = (*errors, trt.ILogger.WARNING)  # of warnings hundreds for a network, about what need not be otherwise

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, message: str) -> None:
            if severity in told:
                logger.info("%s: %s", flavour.title, message)
            if severity in errors:
                self.errors.append(message)

        def said(self) -> str:
            """Its last errors, once."""
            words = "; ".join(self.errors) or "it does not say why"
            self.errors.clear()
            return words

    return Log()


def _is_newer(capability: str) -> bool:
    return re.fullmatch(r"\d+\.\d", capability) is not None and float(capability) >= float(DEFAULT_CAPABILITIES[-1])
