"""`swiftdiffusion gateway`: OpenAI's images API, A1111's web UI API and a page in front of Triton servers."""

import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from .settings import MIB, GatewaySettings

logger = logging.getLogger(__name__)
STARTUP_FAILURE = 3  # uvicorn's own
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def gateway(
    server: Annotated[
        list[str] | None, typer.Option(help="grpc://HOST:PORT of a Triton server; repeatable.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    keys: Annotated[
        Path | None, typer.Option(help="TOML file of API keys; without one, everybody may come in.", dir_okay=False)
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="For grpcs://: who signed the servers' certificates, PEM.", dir_okay=False)
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Of a page elsewhere that may use this gateway (CORS); repeatable.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="What URLs of pictures begin with; default: as the request was addressed.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Begin a picture again whose server died under it, with the same seed.")
    ] = GatewaySettings.retries,
    max_runs: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = GatewaySettings.max_runs,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request.")] = GatewaySettings.max_body_bytes // MIB,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Of a picture that a caller sends.")
    ] = GatewaySettings.max_pixels,
    run_seconds: Annotated[
        float, typer.Option(min=1, help="Longest that a picture may take without a timeout_ms.")
    ] = GatewaySettings.run_seconds,
    drain_seconds: Annotated[int, typer.Option(min=0, help="On SIGTERM, what is being made has so long to end.")] = 120,
    page: Annotated[bool, typer.Option(help="Serve the page at /.")] = True,
) -> None:
    """Serve pictures over OpenAI's images API, A1111's API and a page, in front of one or several Triton servers."""
    try:
        import uvicorn

        from .app import gateway as application
        from .draining import LAST_WORDS_S, GatewayServer
        from .shared import Shared
    except ImportError as error:
        raise typer.BadParameter(f"{error.name} is missing; wanted: pip install 'swiftdiffusion[gateway]'") from error
    from .keys import KeysError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("swiftdiffusion.clients.client").setLevel(logging.WARNING)  # a line for every try is too many
    settings = GatewaySettings(
        servers=tuple(server or GatewaySettings.servers),
        ca_file=ca_file,
        retries=retries,
        keys_file=keys,
        origins=tuple(origin or ()),
        public_url=public_url,
        max_body_bytes=max_body_mib * MIB,
        max_pixels=max_pixels,
        max_runs=max_runs,
        run_seconds=run_seconds,
        page=page,
    )
    for url in settings.servers:
        address = urlsplit(url)
        if address.scheme not in ("grpc", "grpcs") or not address.netloc:
            raise typer.BadParameter(f"--server is {url!r}; wanted: grpc://HOST:PORT, or grpcs with TLS")
    who = "everybody" if keys is None else f"who has a key of {keys}"
    logger.info("in front of %s, for %s", ", ".join(settings.servers), who)
    if keys is None and host not in LOOPBACK:
        logger.warning("--host is %s, and there is no --keys: everybody who reaches it may come in", host)
    try:
        shared = Shared.of(settings)
        app = application(settings, shared)
    except KeysError as error:
        raise typer.BadParameter(str(error)) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again once it has ended well
    serving = GatewayServer(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,  # the door has one, without queries
            log_config=None,
            timeout_graceful_shutdown=drain_seconds + LAST_WORDS_S,
            server_header=False,
        ),
        shared,
        drain_seconds,
    )
    with suppress(KeyboardInterrupt):
        serving.run()
    if not serving.started:  # the log says why
        raise typer.Exit(STARTUP_FAILURE)
