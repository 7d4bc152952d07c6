"""What happened to LoRAs during a measurement, from the server's Prometheus metrics."""

import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

METRICS_PORT = 8002
_TIMEOUT_SECONDS = 5.0
_TOLD_WITHIN_SECONDS = 0.5  # models tell the server of what happened at intervals
_PREFIX = "swiftdiffusion_lora_"

_Samples = Mapping[tuple[str, str], float]  # by name without prefix, and the value of the only label, or ""


@dataclass(frozen=True)
class Timed:
    """How often something happened, and how many milliseconds it took on average."""

    count: int
    mean_ms: float


@dataclass(frozen=True)
class LoraWork:
    """What a server did about LoRAs in a period.

    Attributes:
        loads: by the tier that they came from: `host`, `disk`, `remote`.
        refused: LoRAs that requests did not get.
        patches: changes of one UNet shard's resident LoRAs.
        delay_steps: mean of the denoising steps that ran before a LoRA went on.
        waits: requests that stood still for a LoRA at its bound.
    """

    loads: Mapping[str, Timed]
    refused: int
    patches: Timed
    delay_steps: float
    waits: Timed


class LoraMetrics:
    """The server's counters of LoRAs at one moment."""

    def __init__(self, samples: _Samples) -> None:
        self._samples = samples

    def work_since(self, earlier: "LoraMetrics") -> LoraWork | None:
        """Work between an earlier moment and this one; None if there was none."""
        grown = {key: value - earlier._samples.get(key, 0.0) for key, value in self._samples.items()}
        sources = sorted({label for (name, label), value in grown.items() if name == "load_seconds_count" and value})
        steps, delayed = _sum(grown, "delay_steps_sum"), _sum(grown, "delay_steps_count")
        work = LoraWork(
            loads={source: _timed(grown, "load_seconds", source) for source in sources},
            refused=round(_sum(grown, "refusals_total")),
            patches=_timed(grown, "patch_seconds"),
            delay_steps=steps / delayed if delayed else 0.0,
            waits=_timed(grown, "wait_seconds"),
        )
        return work if work.loads or work.refused or work.patches.count or delayed else None


def metrics_url_of(url: str) -> str:
    """Where the metrics of the server at an inference URL are by default: on port 8002 of its host."""
    host = urlsplit(url).hostname or "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{METRICS_PORT}/metrics"


def read_lora_metrics(metrics_url: str) -> LoraMetrics:
    """The counters of LoRAs, with all that has happened by now; none of them if the server has no such metrics.

    Raises:
        OSError: nobody answers there, or not with metrics.
    """
    time.sleep(_TOLD_WITHIN_SECONDS)
    with urllib.request.urlopen(metrics_url, timeout=_TIMEOUT_SECONDS) as answer:
        text = answer.read().decode(errors="replace")
    try:
        return parse_lora_metrics(text)
    except ValueError as error:
        raise OSError(f"{metrics_url} answers with what are no metrics: {error}") from error


def parse_lora_metrics(text: str) -> LoraMetrics:
    """The counters of LoRAs in Prometheus' text format.

    Raises:
        ValueError: the text is no such format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIX) and "le" not in sample.labels:
                label = next(iter(sample.labels.values()), "")
                samples[sample.name.removeprefix(_PREFIX), label] = sample.value
    return LoraMetrics(samples)


def _sum(samples: _Samples, name: str, label: str | None = None) -> float:
    return sum(value for (of, has), value in samples.items() if of == name and label in (None, has))


def _timed(samples: _Samples, histogram: str, label: str | None = None) -> Timed:
    count = round(_sum(samples, f"{histogram}_count", label))
    return Timed(count, 1000 * _sum(samples, f"{histogram}_sum", label) / count if count else 0.0)
