"""The medians of `gpu.py` as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BASE, OTHER = "#2a6f4e", "#b9c4bd"


def plot(results: dict[str, Any], path: Path) -> bool:
    """Bars of every comparison, with quartiles, and of each kernel's ratio to PyTorch.

    Args:
        results: Parts of the benchmark by name.
        path: A PNG file.

    Returns:
        Whether there was anything to draw.
    """
    compared = [(f"{part}, {case}", each) for part in ("unet", "vae") for case, each in results.get(part, {}).items()]
    if "masked" in results:
        compared.append(("UNet over a mask", results["masked"]))
    if "controlnet" in results:
        compared.append(("UNet with a ControlNet", results["controlnet"]))
    kernels = results.get("kernels", [])[1:]
    count = len(compared) + bool(kernels)
    if not count:
        return False
    figure, axes = pyplot.subplots(count, 1, figsize=(8, 2.2 * count), squeeze=False, layout="constrained")
    for axis, (what, each) in zip(axes[:, 0], compared, strict=False):
        _compare(axis, what, each["milliseconds"])
    if kernels:
        _kernels(axes[-1, 0], kernels)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _compare(axis: Any, what: str, timings: dict[str, dict[str, Any]]) -> None:
    medians = [timing["median_ms"] for timing in timings.values()]
    low = [timing["median_ms"] - timing["quartiles_ms"][0] for timing in timings.values()]
    high = [timing["quartiles_ms"][1] - timing["median_ms"] for timing in timings.values()]
    colours = [BASE if name in ("ours", "beside") else OTHER for name in timings]
    axis.barh(list(timings), medians, xerr=[low, high], color=colours)
    axis.set(title=what, xlabel="ms, median and quartiles")
    axis.invert_yaxis()


def _kernels(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['op']} {'×'.join(map(str, row['shape']))}" for row in rows]
    axis.barh(names, [row["torch_over_ours"] for row in rows], color=BASE)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(title="kernels", xlabel="PyTorch ÷ ours")
    axis.tick_params(axis="y", labelsize=7)
    axis.invert_yaxis()
