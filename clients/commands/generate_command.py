"""`swiftdiffusion generate`: pictures from a running server, as a file."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..client.async_client import DEFAULT_URL, AsyncClient
from ..client.errors import ServerFailure, ServerUnreachable, SwiftDiffusionError
from ..client.request import ControlNet, GenerationRequest, Lora
from ..client.result import EditingReport, GenerationResult, LoraReport
from .saving import of_suffix, save


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to show; several give a contact sheet.")] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Picture to write; its suffix is the format. A PNG says what it was made of."),
    ] = Path("out/picture.png"),
    prompt_file: Annotated[
        Path | None, typer.Option("--prompts", exists=True, dir_okay=False, help="More prompts, one a line.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    prompt_syntax: Annotated[
        str | None, typer.Option(help="plain, or weighted: (word:1.3), \\[word], BREAK and more than 75 tokens.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture; the others count up.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 or less turns guidance off.")] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="Against overexposure by guidance, 0 to 1; for zero-SNR checkpoints.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="In pixels.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Such as euler; a wrong name is answered with the right ones.")
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(min=0, help="Last layers of the text encoders that the prompts go without.")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(metavar="NAME[:SCALE]", help="Repeatable.")] = None,
    lora_bound: Annotated[
        int | None, typer.Option(min=0, help="Steps that may run before the LoRAs are loaded; 0 waits for them.")
    ] = None,
    lora_patch_step: Annotated[
        int | None, typer.Option(min=0, help="Put the LoRAs on at exactly this step, as an earlier run reported.")
    ] = None,
    control: Annotated[list[str] | None, typer.Option(metavar="NAME[/MODE][:SCALE]=IMAGE", help="Repeatable.")] = None,
    init_image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A picture to start from; its size is the new one's."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Where it is painted anew: what is white here.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="How much of it changes, above 0 to 1.")] = None,
    composite: Annotated[
        bool | None, typer.Option("--composite", help="Put back what the mask leaves, pixel by pixel.")
    ] = None,
    mask_aware: Annotated[
        str | None, typer.Option(help="fast or balanced: most steps compute what is masked alone; or JSON; else exact.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 4,
    url: Annotated[
        str, typer.Option(envvar="SWIFTDIFFUSION_URL", help="grpc://HOST:PORT (shows progress) or http://HOST:PORT.")
    ] = DEFAULT_URL,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="For grpcs:// and https://: who signed the server's certificate, PEM.", dir_okay=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Entry model; default: sdxl or sd15, as the server has.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one picture may take.")] = None,
    timeout_ms: Annotated[
        int | None,
        typer.Option(min=1, help="When the server gives up on a picture; what would take longer it refuses."),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Send a picture's request again, where a part of the server died under it.")
    ] = 0,
    priority: Annotated[
        str | None, typer.Option(help="low, normal or high: who goes first where requests wait.")
    ] = None,
) -> None:
    """Make a picture of each prompt; several go on one captioned sheet."""
    if out.suffix.lower() not in Image.registered_extensions():
        raise typer.BadParameter(f"--out is {str(out)!r}; wanted: a suffix of a picture format, such as .png")
    console = Console(stderr=True)
    height, width = _parse_size(size)
    controls = [_parse_control(text) for text in control or ()]
    base = GenerationRequest(
        prompt="",
        negative_prompt=negative,
        prompt_syntax=prompt_syntax,
        steps=steps,
        guidance_scale=guidance,
        guidance_rescale=guidance_rescale,
        height=height,
        width=width,
        scheduler=scheduler,
        clip_skip=clip_skip,
        loras=tuple(_parse_lora(text) for text in lora or ()),
        lora_bound=lora_bound,
        lora_patch_step=lora_patch_step,
        controlnets=tuple(entry for entry, _ in controls),
        control_images=tuple(path for _, path in controls),
        init_image=init_image,
        mask_image=mask,
        strength=strength,
        composite=composite,
        mask_aware=mask_aware,
        timeout_ms=timeout_ms,
        priority=priority,
    )
    requests = of_suffix(out, _requests(base, _all_prompts(prompts, prompt_file), count, seed))

    async def run() -> list[GenerationResult]:
        async with AsyncClient(url, model, timeout, retries, ca_file=ca_file) as client:
            return await _generate_all(client, requests, concurrency, console)

    try:
        results = asyncio.run(run())
        save(out, results)
    except ServerUnreachable as error:
        _fail(console, f"{error}\nStart one with `swiftdiffusion serve`, or name another with --url.", error)
    except (SwiftDiffusionError, ValueError, OSError) as error:
        _fail(console, str(error), error)
    for request, result in zip(requests, results, strict=True):
        console.print(
            f"seed {result.info.seed}  {result.seconds:.2f} s  {request.prompt}", highlight=False, markup=False
        )
        for report in result.info.loras:
            console.print(f"  {describe_lora(report)}", style="dim", highlight=False, markup=False, soft_wrap=True)
        for controlnet in result.info.controlnets:
            told = f"{controlnet.name}: gave residuals {controlnet.calls} times"
            console.print(f"  {told}", style="dim", highlight=False, markup=False, soft_wrap=True)
        if result.info.editing is not None:
            told = describe_editing(result.info.editing, result.info.unet_evaluations)
            console.print(f"  {told}", style="dim", highlight=False, markup=False, soft_wrap=True)
    typer.echo(out)


async def _generate_all(
    client: AsyncClient, requests: Sequence[GenerationRequest], concurrency: int, console: Console
) -> list[GenerationResult]:
    streamed = await client.can_stream()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[steps]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        display = _Display(progress, asyncio.Semaphore(concurrency), streamed)
        tasks = [asyncio.create_task(display.generate(client, request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one failed or Ctrl-C: let the others free the server before leaving
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class _Display:
    """Requests with a line each: a bar of their steps if they are streamed, a spinner otherwise."""

    progress: Progress
    limit: asyncio.Semaphore
    streamed: bool

    async def generate(self, client: AsyncClient, request: GenerationRequest) -> GenerationResult:
        async with self.limit:
            line = self.progress.add_task(request.prompt[:40], total=None, steps="")
            try:
                if not self.streamed:
                    return await client.generate(request)
                async with aclosing(client.stream(request)) as events:
                    async for event in events:
                        if isinstance(event, GenerationResult):
                            return event
                        steps = f"{event.step}/{event.of} steps"
                        self.progress.update(line, completed=event.step, total=event.of, steps=steps)
                raise ServerFailure("the stream ended without a picture")
            finally:
                self.progress.remove_task(line)


def describe_lora(lora: LoraReport) -> str:
    """When a LoRA went on, from where, and how long that took; what the server does not say is left out."""
    scale = "" if lora.scale is None else f":{lora.scale:g}"
    when = "" if lora.patched_at_step is None else f" from step {lora.patched_at_step}"
    told = [f"on{when}{'' if lora.modules is None else f' in {lora.modules} modules'}"]
    told += [] if lora.source is None else ["resident" if lora.source == "gpu" else f"from {lora.source}"]
    times = (("loaded in", lora.load_ms), ("patched in", lora.patch_ms), ("waited", lora.waited_ms or None))
    told += [f"{verb} {milliseconds:.1f} ms" for verb, milliseconds in times if milliseconds is not None]
    return "; ".join([f"{lora.name}{scale}: {', '.join(told)}", *lora.notes])


def describe_editing(editing: EditingReport, steps: int | None) -> str:
    """What a mask-aware run left out, or why it did not."""
    if editing.mode != "tokens":
        return f"mask-aware: computed all tokens: {editing.why}"
    told = [] if editing.computed is None else [f"computed {editing.computed:.0%} of the tokens"]
    told += [f"all in {len(editing.exact_steps)} of {'its' if steps is None else steps} steps"]
    told += [] if editing.source is None else [f"source {editing.source}"]
    told += [f"steps that found nothing: {editing.misses}"] if editing.misses else []
    told += [] if editing.cache_error is None else [f"cache error {editing.cache_error:g}"]
    return f"mask-aware: {', '.join(told)}"


def _requests(base: GenerationRequest, prompts: Sequence[str], count: int, seed: int | None) -> list[GenerationRequest]:
    seeds = [None if seed is None else seed + index for index in range(len(prompts) * count)]
    repeated = [prompt for prompt in prompts for _ in range(count)]
    return [replace(base, prompt=prompt, seed=own) for prompt, own in zip(repeated, seeds, strict=True)]


def _all_prompts(prompts: Sequence[str] | None, prompt_file: Path | None) -> list[str]:
    collected = list(prompts or ())
    if prompt_file is not None:
        collected += [line.strip() for line in prompt_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not collected:
        raise typer.BadParameter("give a prompt, or a file of them with --prompts")
    return collected


def _parse_size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise typer.BadParameter(f"--size is {text!r}; wanted: HEIGHTxWIDTH, such as 512x768")
    return int(match[1]), int(match[2])


def _parse_named_scale(text: str, option: str) -> tuple[str, float | None]:
    name, colon, scale = text.partition(":")
    try:
        return name, float(scale) if colon else None
    except ValueError as error:
        raise typer.BadParameter(f"the scale of {option} {text} is {scale!r}; wanted: a number") from error


def _parse_lora(text: str) -> Lora:
    return Lora(*_parse_named_scale(text, "--lora"))


def _parse_control(text: str) -> tuple[ControlNet, Path]:
    named, equals, image = text.partition("=")
    if not equals or not image:
        raise typer.BadParameter(f"--control is {text!r}; wanted: NAME=IMAGE, NAME:SCALE=IMAGE or NAME/MODE=IMAGE")
    name, scale = _parse_named_scale(named, "--control")
    name, slash, mode = name.partition("/")
    if slash and not mode.isdecimal():
        raise typer.BadParameter(f"the control mode of --control {text} is {mode!r}; wanted: a number")
    return ControlNet(name, scale, control_mode=int(mode) if slash else None), Path(image)


def _fail(console: Console, message: str, error: Exception) -> None:
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1) from error
