"""Importing diffusers without what only others need: networks and schedulers in a third of the time, half the memory.

diffusers' modules import torch.compile's front end for two decorators, PEFT and transformers for methods that load
adapters and prompts, and SciPy for rare schedulers and sigmas. Every start of every process pays for it.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPILER = "torch._dynamo"
UNNEEDED = ("peft", "transformers")
SELDOM_NEEDED = ("scipy.integrate", "scipy.stats")
PIPELINES = (
    "stable_diffusion.pipeline_stable_diffusion",
    "stable_diffusion_xl.pipeline_stable_diffusion_xl",
)


class _Decorators(ModuleType):
    """Marks for the compiler, on what this process does not compile."""

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        return function

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        return function if function is not None else lambda given: given


class _LazyModule(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__name__)
        if module is self:  # it is not needed yet
            raise AttributeError(name)
        return getattr(module, name)


def import_diffusers() -> None:
    """To be called before anything imports diffusers, in a process that makes no pipelines and does not compile.

    For diffusers there are no PEFT and no transformers in this process; whoever imports them himself gets them.
    """
    if "diffusers" in sys.modules:
        return
    with _instead({COMPILER: _Decorators(COMPILER), **_seldom_needed(), **dict.fromkeys(UNNEEDED)}):
        importlib.import_module("diffusers.models.unets.unet_2d_condition")
        schedulers = importlib.import_module("diffusers.schedulers")
        for name in dir(schedulers):
            getattr(schedulers, name, None)  # imports it


def import_pipelines() -> None:
    """To be called likewise in a process that makes pipelines of text encoders, and loads no LoRAs by them.

    For diffusers there is no PEFT in this process. Transformers brings torch.compile's front end with it.
    """
    if "diffusers" in sys.modules:
        return
    importlib.import_module("transformers.models.clip.modeling_clip")
    with _instead({**_seldom_needed(), "peft": None}):
        for name in PIPELINES:
            importlib.import_module(f"diffusers.pipelines.{name}")


def _seldom_needed() -> dict[str, ModuleType]:
    return {name: _LazyModule(name) for name in SELDOM_NEEDED}


@contextmanager
def _instead(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """Modules that are not imported yet are others meanwhile, or, for None, are not installed."""
    others = {name: module for name, module in modules.items() if name not in sys.modules}
    known: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    known.update(others)
    try:
        yield
    finally:
        for name, module in others.items():
            if name in known and known[name] is module:
                del known[name]
