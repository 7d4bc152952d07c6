"""Mixed requests while processes of the server are killed and stopped: what callers get, what heals, what is left.

python benchmarks/chaos.py --requests 300
python benchmarks/chaos.py --requests 300 --kill-server 2
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from machine import describe
from rich.console import Console
from rich.progress import Progress

from chaos_requests import RETRIES, RIGHT, Offer, Orders, Outcome, ask_once, counted, draw_alone, make_orders
from chaos_server import Faults, Holdings, ServeProcess
from swiftdiffusion.clients import GenerationRequest

ROOT = Path(__file__).resolve().parents[1]
DEMO = Offer(("hatched", "night", "outline", "sunset"), ("edges", "layout"))
WELL_S = 60.0
"""A server that is not well so long after the last fault stays broken."""


LOOK_EVERY_S = 0.5
"""A look is a process that imports Python's packages: one after the other would keep a core busy."""


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        requests: How many, by all callers; more while there were fewer than `faults`.
        kinds: How many of them are distinct.
        callers: At a time; the last has no retries.
        every_s: A fault comes so often, unless too much is down.
        kill_server: How often the fault is the end of tritonserver.
        faults: So many there are, those of tritonserver too; None: as long as there are requests.
        settle_s: What still holds something of a dead process may take so long to give it up.
        seed: The same one makes the same requests and draws the same faults.
    """

    requests: int
    kinds: int = 24
    callers: int = 4
    every_s: float = 4.0
    kill_server: int = 0
    faults: int | None = None
    settle_s: float = 10.0
    seed: int = 13


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        outcomes: Of all requests.
        faults: Those made.
        ends: How tritonserver has ended, and how often.
        heals_s: Seconds by model.
        well_after_s: From the last fault until the server was ready and drew the right picture.
        before: What the server held before the first fault.
        after: After the last, when it was well.
        later: After every distinct request once more.
        remains: What is there when the server has ended.
    """

    outcomes: list[Outcome]
    faults: Faults
    ends: dict[str, int]
    heals_s: dict[str, list[float]]
    well_after_s: float
    before: Holdings
    after: Holdings
    later: Holdings
    remains: list[str]

    @property
    def not_allowed(self) -> list[Outcome]:
        """Wrong pictures, and failures that are neither retriable nor wanted."""
        return [outcome for outcome in self.outcomes if not outcome.is_allowed]

    def to_json(self) -> dict[str, object]:
        """Numbers alone."""
        right = sorted(outcome.seconds for outcome in self.outcomes if outcome.came == RIGHT)
        return {
            "answers": {
                f"{RETRIES} retries": counted([each for each in self.outcomes if each.retries]),
                "no retries": counted([each for each in self.outcomes if not each.retries]),
            },
            "used_up_all_retries": dict(Counter(each.sentence for each in self.outcomes if each.used_up)),
            "right_to_the_bit": sum(outcome.is_exact for outcome in self.outcomes),
            "not_allowed": len(self.not_allowed),
            "latency_s": {
                "median": round(statistics.median(right), 2),
                "p95": round(float(np.quantile(right, 0.95)), 2),
                "max": round(right[-1], 2),
            },
            "faults": dict(sorted(self.faults.made.items())),
            "tritonserver_ends": self.ends,
            "heal_s": {
                model: {"times": len(each), "median": statistics.median(each), "max": max(each)}
                for model, each in self.heals_s.items()
            },
            "well_after_s": round(self.well_after_s, 1),
            "held": {
                "before": self.before.totals(),
                "after": self.after.totals(),
                "after_more_requests": self.later.totals(),
                "regions_left_by": dict(
                    Counter(self.faults.regions.get(region, "?") for region in sorted(self.later.ownerless))
                ),
            },
            "left_when_stopped": self.remains,
        }


def run(
    repository: Path, offer: Offer, plan: Plan, log: Path, tell: Callable[[str, int, int], None] = lambda *_: None
) -> Report:
    """All of it.

    Args:
        repository: To be served.
        offer: What it has.
        plan: What is to happen.
        log: Where tritonserver's log goes.
        tell: Given what is being done, how much of it is done and how much there is.
    """
    requests = [offer.request(number, plan.seed) for number in range(plan.kinds)]
    with ServeProcess(repository, log) as serve:
        parts = asyncio.run(_under_fire(serve, requests, plan, tell))
    return Report(*parts, remains=serve.remains())


async def _under_fire(
    serve: ServeProcess, requests: list[GenerationRequest], plan: Plan, tell: Callable[[str, int, int], None]
) -> tuple[list[Outcome], Faults, dict[str, int], dict[str, list[float]], float, Holdings, Holdings, Holdings]:
    url, faults = serve.urls["grpc"], Faults(serve, plan.seed)
    tell("references", 0, plan.requests)
    pictures = await draw_alone(url, requests)
    before = Holdings.of(serve.server)

    def enough(taken: int) -> bool:
        return taken >= plan.requests and faults.made.total() >= (plan.faults or 0)

    orders = Orders(requests, pictures, make_orders(plan.kinds, plan.seed, enough))

    def is_servers_turn() -> bool:
        """Those of tritonserver are spread over the requests."""
        done = faults.made["tritonserver SIGKILL"]
        tell("under fire", len(orders.outcomes), plan.requests)
        return done < plan.kill_server and len(orders.outcomes) * (plan.kill_server + 1) >= plan.requests * (done + 1)

    most = None if plan.faults is None else plan.faults - plan.kill_server
    firing = asyncio.create_task(faults.every(plan.every_s, is_servers_turn, most))
    callers = [orders.work(serve.urls, RETRIES if number < plan.callers - 1 else 0) for number in range(plan.callers)]
    await asyncio.gather(*callers)
    firing.cancel()
    tell("getting well", len(orders.outcomes), plan.requests)
    deadline = time.monotonic() + WELL_S
    while (unwell := await _unwell(serve, requests[0], pictures[0])) is not None:
        if time.monotonic() > deadline:
            raise RuntimeError("\n".join(["it does not get well:", unwell, *serve.lines[-20:]]))
        await asyncio.sleep(LOOK_EVERY_S)
    well_after_s = time.monotonic() - faults.last_at
    await asyncio.sleep(plan.settle_s)
    after = Holdings.of(serve.server)
    await draw_alone(url, requests)
    later = Holdings.of(serve.server)
    return orders.outcomes, faults, serve.ends, serve.heals_s, well_after_s, before, after, later


async def _unwell(serve: ServeProcess, request: GenerationRequest, expected: np.ndarray) -> str | None:
    """Why a server is not well; None if it is."""
    if (reason := serve.probe()) is not None:
        return reason
    outcome = await ask_once(serve.urls["grpc"], request, expected)
    return None if outcome.came == RIGHT else f"{outcome.came}: {outcome.sentence}"


def main(
    requests: Annotated[int, typer.Option(min=10)] = 300,
    callers: Annotated[int, typer.Option(min=2, help="At a time; the last of them has no retries.")] = 4,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds from fault to fault.")] = 4.0,
    kill_server: Annotated[int, typer.Option(min=0, help="So often tritonserver itself is killed.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same requests.")] = 13,
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = ROOT / "benchmarks/results/chaos.json",
) -> None:
    """Exit status 1 if a picture was wrong or a failure neither retriable nor wanted, or something is left.

    The file has one entry for runs with tritonserver killed and one for those without; the other is kept.
    """
    console = Console(stderr=True)
    plan = Plan(requests, callers=callers, every_s=every, kill_server=kill_server, seed=seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Progress(console=console) as progress:
        task = progress.add_task("starting the server", total=requests)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        report = run(ROOT / "model_repository", DEMO, plan, Path(directory) / "log", tell)
    name = "tritonserver too" if kill_server else "models alone"
    command = f"python benchmarks/chaos.py --requests {requests} --callers {callers} --every {every:g} --seed {seed}"
    results = json.loads(out.read_text("utf-8")) if out.exists() else {}
    results[name] = {
        "command": command + (f" --kill-server {kill_server}" if kill_server else ""),
        "machine": describe(),
        "seconds": round(time.monotonic() - start, 1),
        **report.to_json(),
    }
    out.write_text(json.dumps(results) + "\n", encoding="utf-8")
    for outcome in report.not_allowed[:10]:
        console.print(outcome, markup=False)
    console.print(f"written to {out}", highlight=False)
    if report.not_allowed or report.remains:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
