"""The GPU runtime against diffusers and torch.compile, with random weights at SDXL's real sizes; needs no files.

Every part compares variants that take turns in one process. Results are medians; the JSON has quartiles, versions, and
the GPU's clocks as found. `--tiny` takes toy sizes, on a CPU too: that checks this program; its numbers mean nothing.
"""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import gpu_grouped_lora
import gpu_ideas
import gpu_kernels
import gpu_lora
import gpu_masked
import gpu_networks as networks
import torch
import typer
from gpu_plot import plot
from gpu_timing import Timing, compare
from machine import describe
from rich.console import Console
from rich.table import Table

import gpu_engines

ROOT = Path(__file__).resolve().parents[1]
RESULT, TINY_RESULT = ROOT / "benchmarks/results/gpu.json", ROOT / "out/gpu_tiny.json"
PARTS = ("kernels", "unet", "ideas", "masked", "controlnet", "lora", "grouped_lora", "vae", "engines")
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,utilization.gpu"


class Bench:
    """One run."""

    def __init__(self, tiny: bool, rounds: int, tune: bool, compiled: str | None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._tiny, self._rounds, self._tune, self._compiled = tiny, rounds, tune, compiled

    def kernels(self) -> list[dict[str, Any]]:
        """Each kernel against PyTorch and the memory."""
        shrink = 8 if self._tiny else 1
        return gpu_kernels.measure(self.device, self.dtype, shrink, self._rounds, self._tune)

    def unet(self) -> dict[str, Any]:
        """A step with guidance, and with one latent: what a shard does when two share a request."""
        results: dict[str, Any] = {}
        for rows in (2, 1):
            theirs = self._unet()
            given = networks.inputs(theirs, rows)
            exact = networks.in_float32(theirs, given)
            ours = networks.Ours(self._unet())
            mine = ours.given(given)
            last = networks.diffusers_call(self._unet().to(memory_format=torch.channels_last), given)
            variants = {"eager": networks.diffusers_call(theirs, given), "eager, channels-last": last}
            if self._compiled and rows == 2:  # minutes for every shape
                compiled = torch.compile(self._unet().to(memory_format=torch.channels_last), mode=self._compiled)
                variants["torch.compile"] = networks.diffusers_call(compiled, given)
            variants["ours"] = lambda ours=ours, mine=mine: ours.step(mine)
            variants["ours, prompts anew"] = lambda ours=ours, mine=mine: ours.step(mine, weights=None)
            timings = compare(variants, self._rounds)
            results[f"{rows} rows"] = {
                **_ratios(timings, "ours"),
                "error_against_float32": {
                    name: networks.relative_error(variants[name](), exact) for name in ("eager", "ours")
                },
            }
            del theirs, ours, last, variants, exact
            torch.compiler.reset()
            _free()
        return results

    def ideas(self) -> dict[str, Any]:
        """What each saving of the fused modules saves."""
        return gpu_ideas.measure(self._unet, self._rounds)

    def masked(self) -> dict[str, Any]:
        """Steps over a mask's tokens, by a template that is on the GPU."""
        results = gpu_masked.measure(networks.Ours(self._unet()), self._rounds)
        return results | _ratios(results.pop("timings"), "all tokens")

    def controlnet(self) -> dict[str, Any]:
        """A ControlNet on a stream of its own beside the encoder half, on one GPU."""
        unet = self._unet()
        network = networks.OurControlNet(networks.controlnet(unet, self.device, self.dtype))
        given = networks.inputs(unet, 2)
        ours = networks.Ours(unet)
        embedded = torch.randn(
            2, unet.config.block_out_channels[0], *given[0].shape[2:], device=self.device, dtype=self.dtype
        )
        variants = {
            "bare": lambda: ours.step(ours.given(given)),
            "beside": lambda: network.beside(ours, given, embedded),
            "before": lambda: network.before(ours, given, embedded),
        }
        same = torch.equal(variants["beside"]().clone(), variants["before"]())
        return {**_ratios(compare(variants, self._rounds), "bare"), "beside_equals_before": same}

    def lora(self) -> dict[str, Any]:
        """Rank 64 on all modules."""
        bandwidth = gpu_kernels.copy_bandwidth(self.device, 8 if self._tiny else 1)
        return gpu_lora.measure(self._unet(), self._unet(), 2, 4 if self._tiny else 64, self._rounds, bandwidth)

    def grouped_lora(self) -> list[dict[str, Any]]:
        """LoRAs beside the weights: what they add to the plain product."""
        shrink = 8 if self._tiny else 1
        return gpu_grouped_lora.measure(self.device, self.dtype, shrink, self._rounds, self._tune)

    def vae(self) -> dict[str, Any]:
        """A picture of 1024²."""
        results = {}
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            theirs, ours = (networks.vae(not self._tiny, self.device, dtype) for _ in range(2))
            networks.Runtime().prepare(ours, self.device)
            latents = torch.randn(1, 4, *(2 * [16 if self._tiny else 128]), device=self.device, dtype=dtype)
            variants = {
                "eager": lambda vae=theirs, latents=latents: vae.decode(latents, return_dict=False)[0],
                "ours": lambda vae=ours, latents=latents: vae.decode(latents, return_dict=False)[0],
            }
            with networks.tuned_convolutions(self.device):  # as when a model loads
                error = networks.relative_error(variants["ours"](), variants["eager"]())
            results[str(dtype)] = {**_ratios(compare(variants, self._rounds), "ours"), "difference": error}
            del theirs, ours, variants
            _free()
        return results

    def engines(self) -> dict[str, Any]:
        """Engines of TensorRT or TensorRT-RTX, where there are such."""
        return gpu_engines.measure(not self._tiny, self.device, self.dtype, self._rounds)

    def _unet(self) -> Any:
        return networks.unet(not self._tiny, self.device, self.dtype)


def _ratios(timings: dict[str, Timing], base: str) -> dict[str, Any]:
    return {
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        f"over_{base}": {name: round(each.median_ms / timings[base].median_ms, 3) for name, each in timings.items()},
    }


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gpu_state() -> dict[str, str]:
    """What nvidia-smi says, as found."""
    if not torch.cuda.is_available():
        return {}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return dict(zip(QUERY.split(","), (part.strip() for part in said.split("\n")[0].split(",")), strict=False))


def show(console: Console, results: dict[str, Any]) -> None:
    """Tables of the medians, and what was compared."""
    if not torch.cuda.is_available():
        console.print("On a CPU the operators are their eager references: these times say nothing of a GPU,")
        console.print("and of the savings a CPU has `divisions` alone: what others seem to save is noise.")
    table = Table("what", "variant", "ms", "÷ ours, bare, or all")
    for part in ("unet", "vae"):
        for case, result in results.get(part, {}).items():
            _rows(table, f"{part} {case}", result)
    for part, what in (("masked", "UNet over a mask"), ("controlnet", "UNet with a ControlNet")):
        if part in results:
            _rows(table, what, results[part])
    if table.rows:
        console.print(table)
    kernels = Table("kernel", "shape", "ours µs", "torch µs", "torch ÷ ours", "share of copy bandwidth")
    for row in results.get("kernels", [])[1:]:
        times = row["microseconds"]
        ratio, share = f"{row['torch_over_ours']:.2f}", f"{row['share_of_copy_bandwidth']:.0%}"
        shape = " × ".join(map(str, row["shape"]))
        kernels.add_row(row["op"], shape, f"{times['ours']:.1f}", f"{times['torch']:.1f}", ratio, share)
    if kernels.rows:
        console.print(kernels)
    for part, module in (("ideas", gpu_ideas), ("grouped_lora", gpu_grouped_lora), ("engines", gpu_engines)):
        if part in results:
            console.print(module.table(results[part]))
    if checks := _checks(results):
        console.print_json(data=checks)


def _checks(results: dict[str, Any]) -> dict[str, Any]:
    """What was compared beside times."""
    checks = {f"unet, {case}": each["error_against_float32"] for case, each in results.get("unet", {}).items()}
    checks |= {f"vae, {case}: difference": each["difference"] for case, each in results.get("vae", {}).items()}
    for part, what in (("controlnet", "beside_equals_before"), ("masked", "error_against_all_tokens")):
        if part in results:
            checks[f"{part}: {what}"] = results[part][what]
    if "lora" in results:
        checks["lora"] = results["lora"]
    return checks


def _rows(table: Table, what: str, result: dict[str, Any]) -> None:
    ratios = next(value for key, value in result.items() if key.startswith("over_"))
    for name, timing in result["milliseconds"].items():
        table.add_row(what, name, f"{timing['median_ms']:.2f}", f"{ratios[name]:.2f}")


def main(
    parts: Annotated[str, typer.Option(help=f"Of {','.join(PARTS)}.")] = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(min=2)] = 30,
    tiny: Annotated[bool, typer.Option("--tiny", help="Toy sizes: checks the benchmark itself.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Time the kernels' other settings too.")] = False,
    compiled: Annotated[
        str | None, typer.Option(help="Compare two rows with torch.compile in this mode, such as reduce-overhead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Result file; benchmarks/results/gpu.json, of --tiny out/gpu_tiny.json.")
    ] = None,
) -> None:
    """Measure the GPU runtime side by side with diffusers and torch.compile."""
    wanted = [part.strip() for part in parts.split(",")]
    unknown = sorted(set(wanted).difference(PARTS))
    if unknown:
        raise typer.BadParameter(f"--parts names {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    if not (tiny or torch.cuda.is_available()):
        raise typer.BadParameter("there is no CUDA GPU; --tiny checks the benchmark itself on the CPU")
    console = Console()
    bench = Bench(tiny, rounds, tune, compiled)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    flags = " --tiny" * tiny + " --tune" * tune + f" --compiled {compiled}" * bool(compiled)
    record = {
        "command": f"python benchmarks/gpu.py --parts {parts} --rounds {rounds}{flags}",
        "machine": describe() | versions,
        "gpu": gpu_state(),
        "dtype": str(bench.dtype),
    }
    out = out or (TINY_RESULT if tiny else RESULT)
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for part in wanted:
            measure: Callable[[], Any] = getattr(bench, part)
            with console.status(part):
                results[part] = measure()
            out.write_text(json.dumps(record | results) + "\n", "utf-8")  # a kill loses only what is left
            console.print(f"{part}: done")
            _free()
    show(console, results)
    console.print(f"{out}", soft_wrap=True)
    picture = out.with_suffix(".png")
    if plot(results, picture):
        console.print(f"{picture}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
