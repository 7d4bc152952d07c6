"""Embeddings that go from shared memory before they are used: the request has its texts encoded again."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import lora_files
from file_server import file_server, wait_for
from stages import Stages
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.shared_memory.host_cache import host_cache_directory
from wire import PROMPT, Picture, generate, generate_with

if TYPE_CHECKING:
    from conftest import TinyServer

FIELDS: dict[str, Any] = {"NEGATIVE_PROMPT": "blurry", "SEED": 3, "STEPS": 6, "GUIDANCE_SCALE": 5.0}


def embeddings(tiny: TinyServer) -> list[Path]:
    """The files of a server's embeddings."""
    environment = Path(f"/proc/{tiny.running.pid}/environ").read_bytes()
    (runtime,) = re.findall(rb"SWIFTDIFFUSION_RUNTIME_DIRECTORY=([^\0]+)", environment)
    return list((host_cache_directory(Path(os.fsdecode(runtime))) / "embeddings").glob("*.safetensors"))


def remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("gone", ["both", "prompt", "negative"])
def test_between_text_encoder_and_shard(tiny: TinyServer, gone: str) -> None:
    fields = FIELDS | {"PROMPT": f"a red circle {gone}"}
    stages = Stages(tiny)
    expected, told = stages.denoise(stages.encode(**fields))
    texts = stages.encode(**fields)
    keys = json.loads(texts["ENCODING"])
    wanted = {keys["prompt"], keys["negative"]} if gone == "both" else {keys[gone]}
    found = [file for file in embeddings(tiny) if file.stem in wanted]
    assert len(found) == len(wanted)
    remove(found)
    latents, info = stages.denoise(texts)
    assert np.abs(latents - expected).mean() < 1e-3
    assert info["prompt_truncated"] == told["prompt_truncated"]
    assert all(file.exists() for file in found)


def test_while_a_request_waits_for_a_lora_of_the_text_encoder(tiny: TinyServer) -> None:
    """It has its own embeddings by then, and gets those with the LoRA when that comes."""
    shapes, gate = BaseModules.of(Checkpoint(tiny.checkpoint)).shapes, threading.Event()
    made = lora_files.kohya({"text_encoder": shapes["text_encoder"]}, seed=secrets.randbelow(2**31))
    content = made.save(tiny.loras.parent / "wordy.made").read_bytes()
    index = tiny.loras / "catalogue.json"
    with file_server() as store, ThreadPoolExecutor(1) as threads:
        location = store.add("/wordy.safetensors", content, gate=gate)
        index.write_text(json.dumps({"loras": {"wordy": {"location": location}}}))
        try:
            waiting = threads.submit(generate_with, tiny, [("wordy", 1.0)], LORA_BOUND=0, STEPS=6)
            wait_for(lambda: store.gets.get("/wordy.safetensors", 0) == 1)
            time.sleep(0.3)  # its run has been made
            remove(embeddings(tiny))
            gate.set()
            picture = waiting.result()
            again = generate_with(tiny, [("wordy", 1.0)], LORA_BOUND=0, STEPS=6)
        finally:
            gate.set()
            index.unlink()
    assert picture.distance(again) < 0.01
    assert picture.info["loras"][0]["patched_at_step"] == 0
    assert again.info["loras"][0]["waited_ms"] == 0, "its prompt was encoded with it at once"
    assert picture.distance(generate_with(tiny, [], STEPS=6)) > 0.5


def test_a_lora_that_goes_before_the_prompt_is_encoded_with_it(tiny: TinyServer) -> None:
    """The prompt is encoded without it then, and once more by the shard that has it."""
    fields = FIELDS | {"PROMPT": "a red circle", "LORAS": '[{"name": "everything"}]', "LORA_BOUND": 0}
    generate(tiny, tiny.model, **fields)
    stages = Stages(tiny)
    texts = stages.encode(**fields)
    ((key, scale),) = json.loads(texts["ENCODING"])["loras"]
    assert scale == 1.0
    gone = stages.encode_texts(texts | {"TICKETS": texts["TICKETS"].replace(key.encode(), b"0" * len(key))})
    assert json.loads(gone["ENCODING"])["loras"] == []
    latents, info = stages.denoise(texts | {"ENCODING": gone["ENCODING"]})
    assert info["loras"][0]["patched_at_step"] == 0
    assert np.abs(latents - stages.denoise(stages.encode(**fields))[0]).mean() < 1e-3


@pytest.mark.parametrize("tickets", [b"[]", b'[{"name": "everything", "path": "/etc/passwd"}]', b"["])
def test_tickets_of_another_request_encode_nothing(tiny: TinyServer, tickets: bytes) -> None:
    stages = Stages(tiny)
    texts = stages.encode(**FIELDS, PROMPT="a red circle", LORAS='[{"name": "everything"}]')
    with pytest.raises(InferenceServerException, match="TICKETS is not what `lora_store` writes"):
        stages.encode_texts(texts | {"TICKETS": tickets})


def test_at_any_moment(tiny: TinyServer) -> None:
    """Whoever removes them again and again costs requests time, or at worst a sentence that says to try again."""
    seeds, stop = range(12), threading.Event()

    def drawn(seed: int) -> Picture:
        return generate_with(tiny, [], SEED=seed, PROMPT=f"{PROMPT} {seed}")

    def keep_removing() -> None:
        while not stop.wait(0.05):
            remove(embeddings(tiny))

    def drawn_or_told(seed: int) -> Picture | None:
        try:
            return drawn(seed)
        except InferenceServerException as error:
            assert "PROMPT: its embeddings went before they were used; try again" in str(error)
            return None

    expected = [drawn(seed) for seed in seeds]
    with ThreadPoolExecutor(5) as threads:
        threads.submit(keep_removing)
        try:
            found = list(threads.map(drawn_or_told, seeds))
        finally:
            stop.set()
    assert any(found)
    for picture, wanted in zip(found, expected, strict=True):
        assert picture is None or picture.distance(wanted) <= 0.5
