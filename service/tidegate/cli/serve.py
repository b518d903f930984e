"""``tidegate serve``: its flags are made from the class `Settings`."""

from __future__ import annotations

import gc
import logging
import os
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated

import typer

from tidegate.config import ENVIRONMENT_PREFIX, FLAGS, LISTS, REMOVED, Settings, flag, load_settings, misspelt_variables

log = logging.getLogger(__name__)


def serve(config: Path | None = None, **flags: str | bool | list[str] | None) -> None:
    """Serve the bundles over HTTP and gRPC until SIGTERM.

    Each setting is taken from its flag, else the variable TIDEGATE_NAME, else the TOML file, else the default.
    """
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    settings = load_settings(given, config)
    # Garbage collection while modules load finds nothing and takes a tenth of the start. The server turns it on again.
    gc.disable()
    # Imported late, so that a bad setting is reported at once and the help does not load a server.
    from tidegate import open_files
    from tidegate.observability.logs import logging_to
    from tidegate.observability.stderr import stderr_logged

    with logging_to(settings.log_level, settings.log_format), stderr_logged():
        open_files.raise_limit()  # which workers inherit
        for warning in misspelt_variables():
            log.warning("%s", warning)
        if settings.workers == 1:
            from tidegate.server import run

            has_ended = run(settings)
        else:
            from tidegate.cluster.supervisor import run as supervise

            supervise(settings)
            has_ended = True
    if not has_ended:
        os._exit(0)


def _config() -> Parameter:
    option = typer.Option(
        "--config", envvar=f"{ENVIRONMENT_PREFIX}CONFIG", metavar="FILE", help="TOML file with settings."
    )
    return Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option])


def _removed(name: str) -> Parameter:
    """Accept a removed flag, so that the error can name its replacement."""
    option = typer.Option(flag(name), hidden=True)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


def _setting(name: str) -> Parameter:
    """Return the flag of one setting. `Settings` parses its text, so that every source is checked in one place."""
    field = Settings.model_fields[name]
    default = "none" if field.default is None else str(field.default)
    if field.annotation is bool:
        switch = typer.Option(f"{flag(name)}/--no-{flag(name)[2:]}", help=field.description, show_default=default)
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[bool | None, switch])
    option = typer.Option(flag(name), metavar="VALUE", help=field.description, show_default=default)
    kind = list[str] if name in LISTS else str
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


_PARAMETERS = [_config(), *map(_setting, FLAGS), *map(_removed, REMOVED)]
# typer reads a function's signature and its annotations.
serve.__signature__ = Signature(_PARAMETERS, return_annotation=None)  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}
