"""``tidegate generate``: characters from a running server, printed as they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from tidegate.api import GeneratedToken, GenerationDone
from tidegate.cli.connection import DEFAULT_SERVER, Server, connected, reaches_grpc
from tidegate.cli.output import AsJson, print_json
from tidegate.transports.http.convert import generation_json

TIMEOUT = 3600.0
"""Seconds: whoever waits too long interrupts."""


@reaches_grpc
def generate(  # noqa: PLR0913, PLR0917 - one parameter per option
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Characters at most.")] = 500,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable; 1 samples as learned.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among this many; 0 among all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample among the likeliest of this total.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model.", show_default="highest")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt; the text is printed as it comes."""
    with connected(server) as client:
        events = client.generate(
            model,
            prompt,
            version=version,
            timeout=TIMEOUT,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
        )
        if as_json:
            _print_end(events)
        else:
            _print_as_it_comes(prompt, events)


def _print_end(events: Iterable[GeneratedToken | GenerationDone]) -> None:
    for event in events:
        if isinstance(event, GenerationDone):
            print_json(generation_json(event))


def _print_as_it_comes(prompt: str, events: Iterable[GeneratedToken | GenerationDone]) -> None:
    """Print the prompt with the first character, so that a refused call prints its error alone."""
    pending = prompt
    try:
        for event in events:
            if isinstance(event, GeneratedToken):
                # typer.echo flushes.
                typer.echo(pending + event.text, nl=False)
                pending = ""
    finally:
        if not pending:
            typer.echo()
