"""``tidegate generate``: text from a running server, printed as it arrives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from tidegate.api import GeneratedToken, GenerationDone
from tidegate.cli.connection import DEFAULT_SERVER, Server, connected, reaches_grpc
from tidegate.cli.output import AsJson, print_json
from tidegate.transports.http.convert import generation_json

TIMEOUT = 3600.0
"""In seconds. Long, because the user can interrupt."""


@reaches_grpc
def generate(  # noqa: PLR0913, PLR0917 - one parameter per option
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of characters to generate.")] = 500,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest, 1 samples as trained.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among this many tokens; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample among the likeliest tokens with this total probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; the same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model.", show_default="highest")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, and print the text as it arrives."""
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
