"""What the routes share."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from ..client.pipelines import PipelineDescription
from .links import Links
from .metrics import Metrics
from .runs import Runs
from .servers import Servers
from .settings import GatewaySettings
from .webui_jobs import Jobs


@dataclass(frozen=True)
class Shared:
    """Of one gateway."""

    settings: GatewaySettings
    metrics: Metrics
    servers: Servers
    runs: Runs
    links: Links
    jobs: Jobs = field(default_factory=Jobs)

    @classmethod
    def of(cls, settings: GatewaySettings) -> "Shared":
        """Those of a gateway that begins."""
        metrics, servers = Metrics(), Servers(settings.servers, settings.ca_file)
        runs = Runs(servers, metrics, retries=settings.retries, most=settings.max_runs, seconds=settings.run_seconds)
        return cls(settings, metrics, servers, runs, Links(settings.kept_bytes, settings.kept_seconds))

    async def pipeline(self, name: str | None) -> tuple[str, PipelineDescription]:
        """A pipeline by name; the first for None.

        Raises:
            ModelNotFound: if there is no such one.
        """
        if name is None:
            return next(iter((await self.servers.pipelines()).items()))
        return name, await self.servers.pipeline(name)


def _shared(request: Request) -> Shared:
    return request.app.state.shared


Gateway = Annotated[Shared, Depends(_shared)]
"""A route's parameter."""
