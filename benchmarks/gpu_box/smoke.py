"""Whether a machine runs this project at all.

Exit code 0: it does; 3: for the most part; any other: nothing else is worth its time.
"""

from __future__ import annotations

import logging
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D

from swiftdiffusion.kernels import geglu as gated
from swiftdiffusion.python_backends.networks.cuda_graphs import CaptureSite, CudaGraphs, CudaRecorder
from swiftdiffusion.python_backends.networks.fused_modules import fuse

logger = logging.getLogger("smoke")
ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.float16) if ON_GPU else ("cpu", torch.float32)


def machine() -> str:
    """Packages and GPU."""
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numpy", "transformers", "diffusers"))
    return f"{found}; {torch.cuda.get_device_name() if ON_GPU else 'no CUDA GPU'}, CUDA {torch.version.cuda}"


def geglu() -> str:
    """A kernel, compiled and right."""
    x = torch.randn(2, 77, 2560, device=DEVICE, dtype=DTYPE)
    return _error(gated.geglu(x), gated.reference(x.double(), None))


def captured_resnet() -> str:
    """A fused block, channels-last, captured, and replayed with another input."""
    block: Any = torch.nn.ModuleList([ResnetBlock2D(in_channels=64, out_channels=128, temb_channels=32)])
    block.to(DEVICE, DTYPE).eval()
    x, embedding = (torch.randn(shape, device=DEVICE, dtype=DTYPE) for shape in ((2, 64, 32, 32), (2, 32)))
    exact = [block[0](scale * x, embedding) for scale in (1, 2)]
    fuse(block)
    block.to(memory_format=torch.channels_last)
    call = CudaGraphs(block[0], CaptureSite(CudaRecorder(torch.device(DEVICE)))) if ON_GPU else block[0]
    return ", ".join(_error(call(scale * x, embedding), each) for scale, each in enumerate(exact, 1))


def _error(result: torch.Tensor, exact: torch.Tensor) -> str:
    error = float((result.double() - exact).norm() / exact.double().norm())
    if not error < 5e-3:
        raise ValueError(f"‖result − exact‖ ÷ ‖exact‖ is {error}; wanted: below 5e-3")
    return f"error {error:.1e}"


@torch.inference_mode()
def main() -> int:
    """Runs all checks, each whatever became of the others; the exit code."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    failed = []
    for check in (machine, geglu, captured_resnet):
        start = time.monotonic()
        try:
            logger.info("%s: %s, %.1f s", check.__name__, check(), time.monotonic() - start)
        except Exception:
            logger.exception("%s failed", check.__name__)
            failed.append(check)
    return 1 if not ON_GPU or machine in failed or len(failed) == 2 else 3 * bool(failed)


if __name__ == "__main__":
    sys.exit(main())
