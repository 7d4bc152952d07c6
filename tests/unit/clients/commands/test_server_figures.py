"""What `swiftdiffusion top` shows, computed of two looks at a server's metrics."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.clients.commands.server_figures import Snapshot, parse_snapshot, quantile_of


def snapshot(at: float, in_time: float, shed: float, busy: float, heals: float = 0) -> Snapshot:
    text = f"""
# TYPE swiftdiffusion_requests_finished_total counter
swiftdiffusion_requests_finished_total{{pipeline="sdxl",outcome="in_time"}} {in_time}
swiftdiffusion_requests_finished_total{{pipeline="sdxl",outcome="shed"}} {shed}
swiftdiffusion_requests_finished_total{{pipeline="sdxl",outcome="invalid"}} {shed}
swiftdiffusion_requests_finished_total{{pipeline="idle",outcome="in_time"}} 5
swiftdiffusion_requests_refused_total{{pipeline="sdxl",reason="late"}} {shed}
swiftdiffusion_offered_seconds_total{{pipeline="sdxl"}} {2 * in_time}
# TYPE swiftdiffusion_requests_waiting gauge
swiftdiffusion_requests_waiting{{pipeline="sdxl",model="unet_shard0"}} 3
swiftdiffusion_requests_waiting{{pipeline="sdxl",model="unet_shard1"}} 4
swiftdiffusion_requests_running{{pipeline="sdxl",model="unet_shard0"}} 8
# TYPE swiftdiffusion_busy_seconds_total counter
swiftdiffusion_busy_seconds_total{{model="unet_shard0",model_instance="unet_shard0_0_0-0"}} {busy}
swiftdiffusion_busy_seconds_total{{model="text",model_instance="text_0_0-0"}} {busy}
swiftdiffusion_busy_seconds_total{{model="text",model_instance="text_0_1-0"}} 1
# TYPE swiftdiffusion_model_down gauge
swiftdiffusion_model_down{{model="vae_decoder"}} 1
# TYPE swiftdiffusion_heals_total counter
swiftdiffusion_heals_total{{model="vae_decoder"}} {heals}
# TYPE swiftdiffusion_step_seconds histogram
swiftdiffusion_step_seconds_sum{{pipeline="sdxl",rows="2"}} {0.05 * in_time}
swiftdiffusion_step_seconds_count{{pipeline="sdxl",rows="2"}} {in_time}
# TYPE swiftdiffusion_request_seconds histogram
swiftdiffusion_request_seconds_bucket{{pipeline="sdxl",le="1"}} {in_time / 2}
swiftdiffusion_request_seconds_bucket{{pipeline="sdxl",le="3"}} {in_time}
swiftdiffusion_request_seconds_bucket{{pipeline="sdxl",le="+Inf"}} {in_time}
nv_inference_count{{model="sdxl"}} 9
"""
    return parse_snapshot(text, at)


def test_rates_shares_and_latencies_are_of_the_time_between_two_looks() -> None:
    figures = snapshot(20.0, 130, 10, 15).figures_since(snapshot(10.0, 100, 0, 10))
    idle, sdxl = figures.pipelines
    assert (sdxl.waiting, sdxl.running) == (7, 8)
    assert (sdxl.requests, sdxl.refused, sdxl.in_time, sdxl.offered) == (5.0, 1.0, 0.75, 6.0)
    assert (sdxl.p50, sdxl.p95) == (1.0, pytest.approx(2.8))
    assert sdxl.step_ms == {2: pytest.approx(50.0)}
    assert (idle.requests, idle.in_time, idle.p50, idle.step_ms) == (0.0, None, None, {})
    assert [(model.model, model.busy, model.down) for model in figures.models] == [
        ("text", 0.25, False),
        ("unet_shard0", 0.5, False),
        ("vae_decoder", 0.0, True),
    ]


def test_counters_that_began_again_count_from_zero() -> None:
    figures = snapshot(20.0, 20, 0, 2, heals=1).figures_since(snapshot(10.0, 1000, 50, 900))
    (_, sdxl), (_, shard, vae) = figures.pipelines, figures.models
    assert (sdxl.requests, sdxl.refused, sdxl.in_time) == (2.0, 0.0, 1.0)
    assert (shard.busy, vae.heals) == (pytest.approx(0.2), 1)


def test_what_is_no_server_of_ours_has_nothing() -> None:
    figures = parse_snapshot("", 1.0).figures_since(parse_snapshot("", 1.0))
    assert (figures.pipelines, figures.models, figures.restarts) == ([], [], 0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_that_has_it(counts: list[int], quantile: float) -> None:
    bounds = [*map(float, range(1, len(counts))), math.inf]
    sums = [sum(counts[: place + 1]) for place in range(len(counts))]
    found = quantile_of(quantile, list(zip(bounds, map(float, sums), strict=True)))
    if not sums[-1]:
        assert found is None
        return
    place = next(place for place, sum_ in enumerate(sums) if sum_ >= quantile * sums[-1] and sum_)
    assert found is not None
    assert (bounds[place - 1] if place else 0.0) - 1e-9 <= found <= bounds[place] + 1e-9
