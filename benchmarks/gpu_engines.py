"""Engines of TensorRT or TensorRT-RTX against runtime torch: SDXL's UNet at 1024², one size, built where it runs.

Every variant has a fresh directory, and so nothing of what others were built or compiled with. Memory is what a start
takes of the GPU beyond the network's weights, whoever allocates it.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_networks as networks
import torch
from gpu_lora import random_lora
from gpu_networks import Ours
from gpu_timing import compare
from rich.console import Group, RenderableType
from rich.table import Table

from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.networks.runtimes import Runtime
from swiftdiffusion.python_backends.tensorrt.flavours import FLAVOURS, Flavour, TensorRTUnavailableError
from swiftdiffusion.python_backends.tensorrt.tensor_names import DECODER, ENCODER, ENCODER_INPUTS

SECONDS = 480
"""After so many no variant is begun: builds of TensorRT take minutes."""

ROWS, RANK, SCALE = (2, 1), 64, 0.7


@dataclass(frozen=True)
class Variant:
    """How engines are built.

    Attributes:
        weights: Of `export.tensorrt.engines.WEIGHTS`.
        norms: Of `function_bodies.NORM_FORMS`.
        plugins: Whether norms and GEGLU are our kernels, where the runtime has plugins.
    """

    weights: str = "inputs"
    norms: str = "reduce"
    plugins: bool = True


VARIANTS = {
    "all weights from outside": Variant(),
    "norms: instance": Variant(norms="instance", plugins=False),
    "norms: reduce": Variant(plugins=False),
    "linear weights from outside": Variant("linear"),
    "constant weights": Variant("constant"),
}


def measure(real: bool, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Figures of every variant, and why some were left out.

    Args:
        real: SDXL's widths, or a fifth of them.
        device: The GPU.
        dtype: Of weights and activations.
        rounds: Measured turns.
    """
    start = time.monotonic()
    usable, left_out = _usable(device)
    results: dict[str, Any] = {"left_out": left_out}
    if not usable:
        return results
    with tempfile.TemporaryDirectory(prefix="gpu_engines-") as directory:
        graphs = Path(directory) / "onnx"
        results["export_seconds"] = _export(graphs, real, device, dtype)
        bench = _Bench(real, device, dtype, rounds)
        for flavour in usable:
            results[flavour.name] = figures = {}
            for name, variant in VARIANTS.items():
                if not flavour.plugins and variant == VARIANTS["norms: reduce"]:
                    continue  # without plugins it is the first one
                if time.monotonic() - start > SECONDS:
                    left_out.append(f"{flavour.title}, {name}: {SECONDS} s were over")
                    continue
                engines = Path(directory) / "engines"
                try:
                    figures[name] = bench.of(flavour, variant, graphs / variant.norms, engines)
                except RuntimeError as error:  # one that cannot be built or run leaves the others
                    left_out.append(f"{flavour.title}, {name}: {error}")
                shutil.rmtree(engines, ignore_errors=True)
                _free()
    return results


def _usable(device: torch.device) -> tuple[list[Flavour], list[str]]:
    """What has engines for the GPU, and a sentence for each that has none."""
    if device.type != "cuda":
        return [], ["engines need a GPU, and PyTorch sees none"]
    if not find_spec("onnx_ir"):
        return [], ["engines are built from ONNX files, and onnx_ir is missing: pip install 'swiftdiffusion[onnx]'"]
    capability, usable, left_out = "{}.{}".format(*torch.cuda.get_device_capability(device)), [], []
    for flavour in FLAVOURS.values():
        try:
            flavour.require()
            flavour.check_capability(capability)
            usable.append(flavour)
        except TensorRTUnavailableError as error:
            left_out.append(str(error))
    return usable, left_out


@torch.inference_mode(False)  # torch.export takes no inference tensors
@torch.no_grad()
def _export(directory: Path, real: bool, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Graphs of both halves with either form of norms; the seconds that each took."""
    from engine_builds import written

    from swiftdiffusion.export.onnx.checkpoint_parts import halves
    from swiftdiffusion.export.onnx.function_bodies import NORM_FORMS
    from swiftdiffusion.export.onnx.graph_part import Sizes

    for norms in NORM_FORMS:
        (directory / norms).mkdir(parents=True)
    unet = networks.unet(real, device, dtype).cpu()  # the same weights as every other that is made on this device
    given = dict(zip(ENCODER_INPUTS, networks.inputs(unet, 2), strict=True))
    side = unet.config.sample_size
    taken = {name: tensor for name, tensor in given.items() if tensor.numel()}
    parts = halves(unet, taken, Sizes(2, side, side, 4, dynamic=True))
    return {name: round(seconds, 1) for name, seconds in written(directory, parts, NORM_FORMS)}


class _Bench:
    """Runtime torch, and what engines are given beside it."""

    def __init__(self, real: bool, device: torch.device, dtype: torch.dtype, rounds: int) -> None:
        self._rounds, self._network = rounds, partial(networks.unet, real, device, dtype)
        network = self._network()
        given = {rows: networks.inputs(network, rows) for rows in ROWS}
        self._exact = {rows: networks.in_float32(network, each) for rows, each in given.items()}
        self._lora, self._side = random_lora(network, RANK if real else 4, 0), network.config.sample_size
        self._torch = Ours(network)
        self._given = {rows: Ours.given(each) for rows, each in given.items()}
        self._prepared = self._torch.running.patcher.prepare(self._lora)
        for rows in ROWS:
            self._torch.step(self._given[rows])  # captured
        _free()

    def of(self, flavour: Flavour, variant: Variant, onnx: Path, engines: Path) -> dict[str, Any]:
        """Figures of a variant.

        Raises:
            RuntimeError: If it cannot be built or run.
        """
        built = self._built(flavour, variant, onnx, engines)
        network, runtime, starts = self._network(), Runtime(flavour.name, engines), {}
        for kind in ("cold", "warm"):
            ours = None
            _free()
            ours, starts[kind] = self._started(network, runtime)
        assert ours is not None
        steps = {}
        for rows in ROWS:
            call, other = (partial(each.step, self._given[rows]) for each in (ours, self._torch))
            timings = compare({"engines": call, "torch": other}, self._rounds)
            steps[f"{rows} rows"] = {
                "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
                "over_torch": round(timings["engines"].median_ms / timings["torch"].median_ms, 3),
                "error_against_float32": {
                    name: networks.relative_error(each(), self._exact[rows])
                    for name, each in {"engines": call, "torch": other}.items()
                },
            }
        return built | starts | steps | {"lora": self._patched(ours)}

    def _built(self, flavour: Flavour, variant: Variant, onnx: Path, engines: Path) -> dict[str, Any]:
        from swiftdiffusion.export.tensorrt.engines import BuildSettings, EngineBuilder
        from swiftdiffusion.export.tensorrt.profiles import parse_latents, parse_rows

        rows = parse_rows("1,2" if flavour.timing_cache else "1:2:2")  # timed for each, or finished where it runs
        latents = parse_latents(f"{self._side}x{self._side}")
        builder = EngineBuilder(
            BuildSettings(onnx, engines, rows, latents, flavour, weights=variant.weights, plugins=variant.plugins)
        )
        found: dict[str, Any] = {"build_seconds": {}, "plan_bytes": {}, "weights_from_outside": {}}
        for name in (ENCODER, DECODER):
            seconds, metadata = _seconds(partial(builder.build, name))
            found["build_seconds"][name] = seconds
            found["plan_bytes"][name] = (engines / f"{name}.plan").stat().st_size
            found["weights_from_outside"][name] = len(metadata.weights)
        return found

    def _started(self, network: torch.nn.Module, runtime: Runtime) -> tuple[Ours, dict[str, Any]]:
        """Engines that are loaded and called once with either number of rows, the larger first."""
        free, before = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loading, ours = _seconds(partial(Ours, network, runtime))
        calls = {f"first call, {rows} rows": _seconds(partial(ours.step, self._given[rows]))[0] for rows in ROWS}
        peak = torch.cuda.max_memory_allocated() - before
        _free()
        return ours, {
            "seconds": {"loading": loading, **calls},
            "taken_bytes": free - torch.cuda.mem_get_info()[0],
            "torch_peak_bytes": peak,
        }

    def _patched(self, ours: Ours) -> dict[str, Any]:
        """A LoRA on all modules: what it takes, and whether engines follow."""
        patcher, other, given = ours.running.patcher, self._torch.running.patcher, self._given[2]
        try:
            prepared = patcher.prepare(self._lora)
        except InvalidRequestError as error:
            return {"refused": str(error)}
        before = ours.step(given).clone()
        patcher.apply([(prepared, SCALE)])
        other.apply([(self._prepared, SCALE)])
        found, wanted = (each.step(given, weights="patched").clone() for each in (ours, self._torch))
        sets = ([(prepared, SCALE)], [])
        timing = compare({"": lambda: [patcher.apply(each) for each in sets]}, self._rounds)[""]
        other.apply([])
        return {
            "patch_ms": round(timing.median_ms / 2, 3),
            "difference_to_torch": networks.relative_error(found, wanted),
            "changes_output_by": networks.relative_error(found, before),
            "restored_bits": bool(torch.equal(ours.step(given), before)),
        }


def table(results: dict[str, Any]) -> RenderableType:
    """What was left out, and a line for each variant and number of rows."""
    shown = Table(
        "runtime", "variant", "rows", "ms", "÷ torch", "error", "build s", "cold s", "warm s", "LoRA ms", "bits"
    )
    for runtime in FLAVOURS:
        for name, each in results.get(runtime, {}).items():
            build = f"{sum(each['build_seconds'].values()):.0f}"
            starts = [f"{sum(each[kind]['seconds'].values()):.1f}" for kind in ("cold", "warm")]
            lora = [str(each["lora"].get(key, "refused")) for key in ("patch_ms", "restored_bits")]
            for rows in ROWS:
                step = each[f"{rows} rows"]
                numbers = f"{step['milliseconds']['engines']['median_ms']:.2f}", f"{step['over_torch']:.2f}"
                error = f"{step['error_against_float32']['engines']:.1e}"
                shown.add_row(runtime, name, str(rows), *numbers, error, build, *starts, *lora)
    reasons = [f"engines: {reason}" for reason in results["left_out"]]
    return Group(*reasons, shown) if shown.rows else Group(*reasons)


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """What a call takes with all that it leaves to the GPU, and gives."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return round(time.perf_counter() - start, 2), result


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
