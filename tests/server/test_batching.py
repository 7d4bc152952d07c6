"""Continuous batching: requests join the running batch at its next step, whatever they are."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from file_server import wait_for
from wire import Stream, cancel, generate, metrics

one_shard = pytest.mark.parametrize("tiny", ["other"], indirect=True)
three_shards = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)

UNLIKE = {
    "negative prompt": {"NEGATIVE_PROMPT": "blurry"},
    "size": {"HEIGHT": 256, "WIDTH": 128},
    "scheduler": {"SCHEDULER": "euler_a"},
    "no guidance": {"GUIDANCE_SCALE": 1.0},
    "no seed": {"SEED": None},
    "request id": {"REQUEST_ID": "one of its own"},
    "empty lists": {"LORAS": "[]", "CONTROLNETS": "[]", "TIMEOUT_MS": 60000},
}


def steps_taken(tiny: Any) -> tuple[int, int]:
    """(steps of requests, steps of batches) so far; the first ÷ the second is the mean batch size."""
    told, own = metrics(tiny), f'{{pipeline="{tiny.model}"}}'
    return tuple(int(told.get(f"swiftdiffusion_denoiser_batch_size_{part}{own}", 0)) for part in ("sum", "count"))  # type: ignore[return-value]


@one_shard
@pytest.mark.parametrize("difference", UNLIKE)
def test_a_request_joins_at_the_next_step(tiny: Any, difference: str) -> None:
    """While 200 large steps run, a request of 20 unlike ones rides along: hardly any of these is taken alone."""
    before = steps_taken(tiny)
    base = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 200, "GUIDANCE_SCALE": 5.0, "HEIGHT": 192, "WIDTH": 192}
    joining = base | {"PROMPT": "a cat", "STEPS": 20} | UNLIKE[difference]
    first = Stream(tiny, **base, REQUEST_ID=f"beside {difference}")
    for _ in range(5):
        first.next()
    second = Stream(tiny, **joining)
    try:
        joined = list(second)
    finally:
        assert cancel(tiny, f"beside {difference}"), "it has ended already"
    with pytest.raises(InferenceServerException, match="was cancelled after step"):
        list(first)
    first.close()
    second.close()
    assert [info["step"] for info, image in joined if image is None] == list(range(1, 20))
    assert joined[-1][0]["largest_batch"] == 2
    of_requests, of_batches = (now - then for now, then in zip(steps_taken(tiny), before, strict=True))
    assert of_requests - of_batches > 20 / 2, (of_requests, of_batches)


@one_shard
def test_equal_requests_share_their_steps(tiny: Any) -> None:
    before = steps_taken(tiny)
    fields = {"PROMPT": "a cat", "STEPS": 200, "GUIDANCE_SCALE": 1.0, "HEIGHT": 96, "WIDTH": 96}
    with ThreadPoolExecutor(6) as threads:
        pictures = list(threads.map(lambda seed: generate(tiny, tiny.model, **fields, SEED=seed), range(6)))
    of_requests, of_batches = (now - then for now, then in zip(steps_taken(tiny), before, strict=True))
    assert len({picture.image.tobytes() for picture in pictures}) == 6
    assert of_requests == 6 * 200
    assert of_batches < 2 * 200
    assert max(picture.info["largest_batch"] for picture in pictures) >= of_requests / of_batches


@one_shard
def test_more_requests_than_places_are_all_served(tiny: Any) -> None:
    with ThreadPoolExecutor(20) as threads:
        run = threads.map(lambda seed: generate(tiny, tiny.model, PROMPT="a cat", SEED=seed, STEPS=3), range(20))
        assert [picture.info["seed"] for picture in run] == list(range(20))


@three_shards
def test_one_request_uses_both_shards_and_many_are_spread(tiny: Any) -> None:
    fields: dict[str, Any] = {"PROMPT": "a cat", "SEED": 1, "STEPS": 4}
    wait_for(lambda: len(generate(tiny, tiny.model, **fields, GUIDANCE_SCALE=5.0).info["shards"]) == 2)
    unguided = generate(tiny, tiny.model, **fields, GUIDANCE_SCALE=1.0)
    assert len(unguided.info["shards"]) == 1


@three_shards
def test_http_streams_the_same_as_server_sent_events(tiny: Any) -> None:
    body = json.dumps({"PROMPT": "a cat", "SEED": 5, "STEPS": 3, "GUIDANCE_SCALE": 1.0}).encode()
    with urllib.request.urlopen(f"{tiny.http_url}/v2/models/{tiny.model}_stream/generate_stream", body) as answer:
        events = [json.loads(line[6:]) for line in answer.read().decode().split("\n") if line.startswith("data: ")]
    assert [json.loads(event["INFO"]) for event in events[:-1]] == [{"step": 1, "of": 3}, {"step": 2, "of": 3}]
    picture = generate(tiny, tiny.model, PROMPT="a cat", SEED=5, STEPS=3, GUIDANCE_SCALE=1.0)
    assert events[-1]["IMAGE"] == picture.image.reshape(-1).tolist()


@three_shards
def test_a_stream_reports_every_step_and_ends_with_the_picture(tiny: Any) -> None:
    fields = {"PROMPT": "a cat", "SEED": 5, "STEPS": 7, "GUIDANCE_SCALE": 1.0}
    stream = Stream(tiny, **fields)
    responses = list(stream)
    stream.close()
    assert [info for info, image in responses[:-1]] == [{"step": step, "of": 7} for step in range(1, 7)]
    assert all(image is None for _, image in responses[:-1])
    assert (responses[-1][1][0] == generate(tiny, tiny.model, **fields).image).all()
