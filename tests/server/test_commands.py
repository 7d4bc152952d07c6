"""The commands `generate` and `perf` against the demo server."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo_requests import LONG, PROMPT, REQUEST, wait_until_running
from swiftdiffusion.clients import Client, Lora
from swiftdiffusion.clients.perf.load import INPUTS, Load, measure, read_requests
from swiftdiffusion.clients.perf.lora_metrics import read_lora_metrics
from swiftdiffusion.clients.perf.statistics import read_statistics
from swiftdiffusion.clients.perf.tool import PerfAnalyzerError, find_perf_analyzer
from swiftdiffusion.python_backends.launcher import TritonServer


@pytest.fixture
def generate(url: str) -> Callable[..., "subprocess.Popen[str]"]:
    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("swiftdiffusion")), "generate", "--url", url, *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
        )

    return run


def test_command_writes_a_picture(tmp_path: Path, url: str, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    out = tmp_path / "new" / "x.png"
    lora = ("--lora", "night:0.8", "--lora-bound", "2", "--lora-patch-step", "1")
    process = generate(PROMPT, "--seed", "7", "--steps", "3", "--size", "128x128", *lora, "--out", str(out))
    answer, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert answer.strip() == str(out)
    assert "seed 7" in messages
    assert re.search(r"night:0\.8: on from step 1 in \d+ modules, .*, loaded in .* ms, patched in .* ms", messages)
    picture = Image.open(out)
    assert picture.text["parameters"].startswith(f"{PROMPT} <lora:night:0.8>\nSteps: 3, Sampler: ")
    with Client(url) as client:
        same = replace(REQUEST, loras=[Lora("night", 0.8, patch_step=1)])
        assert (np.asarray(picture) == client.generate(same).pixels).all()


@pytest.mark.parametrize(("suffix", "name"), [(".webp", "WEBP"), (".JPG", "JPEG"), (".jpeg", "JPEG"), (".bmp", "BMP")])
def test_the_suffix_is_the_format(
    tmp_path: Path, url: str, generate: Callable[..., "subprocess.Popen[str]"], suffix: str, name: str
) -> None:
    out = tmp_path / f"x{suffix}"
    process = generate(PROMPT, "--seed", "7", "--steps", "3", "--guidance", "1", "--out", str(out))
    _answer, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert Image.open(out).format == name
    with Client(url) as client:
        same = client.generate(
            replace(REQUEST, guidance_scale=1.0, output_format=None if name == "BMP" else name.lower())
        )
    assert (np.asarray(Image.open(out)) == same.pixels).all()


def test_command_makes_a_sheet_of_several(tmp_path: Path, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "sheet.png"
    prompts.write_text("a green star\n\na blue square\n")
    process = generate(PROMPT, "--prompts", str(prompts), "--count", "2", "--steps", "1", "--out", str(out))
    _answer, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert messages.count("seed ") == 6
    sheet = Image.open(out)
    assert sheet.width > 3 * 128
    assert sheet.text == {}


@pytest.mark.parametrize(
    ("option", "complaint"),
    [(("--timeout-ms", "1"), "TIMEOUT_MS allows [01] ms; it would never be"), (("--priority", "urgent"), "PRIORITY")],
)
def test_command_asks_for_a_time_and_a_priority(
    option: tuple[str, str], complaint: str, generate: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = generate(PROMPT, "--steps", str(LONG), *option)
    _answer, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(complaint, messages)


def test_ctrl_c_cancels_on_the_server(url: str, generate: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = generate(PROMPT, "--steps", str(LONG), "--size", "512x512")
    wait_until_running(url, "denoiser_stream" if url.startswith("grpc") else "denoiser")
    before = read_statistics(url)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "cancel" in {work.model for work in read_statistics(url).work_since(before)}


def test_perf_measures_the_server_and_its_models(tmp_path: Path, server: TritonServer, url: str) -> None:
    try:
        tool = find_perf_analyzer()
    except PerfAnalyzerError as error:
        pytest.skip(str(error))
    requests = read_requests(INPUTS["loras"], {"STEPS": 2})
    load = Load(url, "sdxl", requests[1:], requests_per_window=2)  # the first one of all has no LoRA
    before, loras_before = read_statistics(url), read_lora_metrics(server.metrics_url)
    latency = measure(tool, load, 2, tmp_path)
    works = {work.model: work for work in read_statistics(url).work_since(before)}
    loras = read_lora_metrics(server.metrics_url).work_since(loras_before)
    assert latency.throughput > 0
    assert latency.percentiles_ms["p50"] <= latency.percentiles_ms["p99"]
    assert {"preprocess", "text_encoder", "denoiser", "vae_decoder", "unet_shard0"} <= set(works)
    assert works["denoiser"].compute_ms > 0
    assert loras is not None
    assert sum(load.count for load in loras.loads.values()) > 0
    assert loras.patches.count == 0 or loras.patches.mean_ms > 0  # weights that are kept cost none
    assert works["denoiser"].calls >= 2 * works["vae_decoder"].calls - 4  # two steps a picture; some are under way
