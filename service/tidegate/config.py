"""The settings of a server: parsed once at the start, then frozen.

This module knows their names, defaults and sources. A flag overrides the environment (``TIDEGATE_…``), which overrides
the TOML file, which overrides the default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tidegate.errors import ConfigurationError, did_you_mean, known_names, shown

ENVIRONMENT_PREFIX = "TIDEGATE_"

LONGEST_LIFE = 100 * 365 * 86400.0
"""Longest lifetime of a session, in seconds: its end must lie before the year 10000, the last that a date can hold."""

_REDIS = ("redis://", "rediss://")

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})", re.ASCII)


class Address(NamedTuple):
    """Where to listen: a host name or an IP address (IPv6 without brackets), and a port. Port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse ``HOST:PORT``, with an IPv6 host in brackets: ``127.0.0.1:8080``, ``localhost:0``, ``[::1]:8080``.

    Raises:
        ValueError: With what is wrong.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not HOST:PORT, like 127.0.0.1:8080 or [::1]:8080")
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"{text!r}: a port is at most 65535")
    return Address(match["v6"] or match["host"], port)


UNIX = "unix:"
"""Prefix of a Unix socket's address; the rest is its path."""


def _meant_address(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and _ADDRESS.fullmatch(rest.rstrip("/")):
        return f": leave {scheme[:20]}:// out"
    scheme, separator, rest = text.partition(":")
    return did_you_mean(scheme + separator, (UNIX,)) if separator and not rest.isdecimal() else ""


def _checked_address(text: str) -> str:
    if text.startswith(UNIX) and text != UNIX:
        return text
    if _ADDRESS.fullmatch(text) is None:
        raise ValueError(
            f"{text!r} is neither HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, nor unix:PATH{_meant_address(text)}"
        )
    return str(parse_address(text))


def without_password(url: str) -> str:
    """Return a URL without its user and password, so that it can be shown."""
    shown_url = re.sub(r"//.*@", "//***@", url)
    return shown_url if shown_url != url or "@" not in url else f"***@{url.rpartition('@')[2]}"


def _known_store(text: str) -> str:
    if text in {"none", "sqlite"} or text.startswith(_REDIS):
        return text
    if text == "memory":
        raise ValueError("'memory' is called none now: it means that there are no durable sessions")
    scheme, separator, _ = text.partition("://")
    meant = did_you_mean(scheme + separator, ("none", "sqlite", *_REDIS))
    raise ValueError(
        f"{without_password(text)!r} is not a store: it is none, sqlite or redis://HOST:PORT/DATABASE "
        f"(with TLS rediss://…){meant}"
    )


def _checked_url(text: str | None) -> str | None:
    if text is None or re.fullmatch(r"https?://[^\s/]+/?", text):
        return text
    scheme, separator, _ = text.partition("://")
    meant = did_you_mean(scheme + separator, ("http://", "https://")) if separator else ""
    raise ValueError(f"{without_password(text)!r} is not a URL like http://127.0.0.1:4317{meant}")


def _none_by_word(value: object) -> object:
    """Return None for the word ``none``, because TOML, flags and variables have no null."""
    return None if value == "none" else value


UNIX_PEERS = "unix"
"""Entry in a list of networks that matches every peer on a Unix socket."""

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*", re.ASCII)
_OWN_PATHS = frozenset({"v1", "v2"})


def parse_root_path(text: str) -> str:
    """Return the path under which a proxy exposes the server, without a trailing slash; empty for the whole host.

    Raises:
        ValueError: It is no path, or it begins like one of the server's own paths.
    """
    path = text.rstrip("/")
    if _ROOT_PATH.fullmatch(path) is None or {"", ".", ".."} & set(path.split("/")[1:]):
        raise ValueError(f"{text!r} is not a path like /models/tidegate")
    if path.split("/")[1:2] and path.split("/")[1] in _OWN_PATHS:
        raise ValueError(f"{text!r}: paths below /v1 and /v2 are the server's own: choose another")
    return path


def _checked_root_path(text: str | None) -> str | None:
    return (parse_root_path(text) or None) if text is not None else None


def _listed(value: object) -> object:
    """Split a list at its commas; return None for the word ``none`` and for an empty list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        return value
    return [part for each in texts for text in each.split(",") if (part := text.strip()) not in {"", "none"}] or None


def _checked_network(text: str) -> str:
    if text == UNIX_PEERS:
        return text
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ValueError(f"{error}: give networks like 10.0.0.0/8 or 2001:db8::/32, addresses, or unix") from None


AddressText = Annotated[str, AfterValidator(_checked_address)]
Provider = Literal["cpu", "cuda"]
RootPath = Annotated[Annotated[str, AfterValidator(_checked_root_path)] | None, BeforeValidator(_none_by_word)]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_checked_network)], ...] | None, BeforeValidator(_listed), NoDecode
]
ArenaPlace = Literal["auto", "host", "device"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OptionalPath = Annotated[Path | None, BeforeValidator(_none_by_word)]
Limit = Annotated[Annotated[Seconds, Field(le=LONGEST_LIFE)] | None, BeforeValidator(_none_by_word)]


class ModelSettings(BaseModel):
    """Settings of one model, from the file's table ``[models.NAME]``. Each overrides the setting of the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Provider | None = None
    arena: ArenaPlace | None = None
    cuda_graphs: bool | None = None
    allow_batch_dependence: bool | None = None
    durable: bool | None = None
    sequences: bool | None = None


class Settings(BaseSettings):
    """All settings of a server. The descriptions are also the command line's help and docs/configuration.md."""

    # Unknown TIDEGATE_ variables are ignored on purpose: Kubernetes sets variables like TIDEGATE_PORT in every pod
    # beside a service called tidegate. An unknown key in the file is an error.
    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    bundles: Path = Field(
        Path("bundles"), description="Directory of the bundles, laid out as NAME/VERSION/manifest.json."
    )
    http: AddressText = Field(
        "127.0.0.1:8080",
        description="First address to listen on, HOST:PORT or unix:PATH, for HTTP, WebSocket and gRPC. Port 0 picks "
        "a free port.",
    )
    grpc: AddressText = Field(
        "127.0.0.1:8081", description="Second address to listen on, in the same form and with the same protocols."
    )
    asgi_server: Literal["h2corn", "uvicorn"] = Field(
        "h2corn",
        description="Server library: h2corn, or the fallback uvicorn (HTTP and WebSocket at --http, grpc.aio for "
        "gRPC at --grpc).",
    )
    tls_cert: OptionalPath = Field(
        None,
        description="PEM file with the server's certificate and its chain. Both addresses then speak only TLS; Unix "
        "sockets stay plain.",
    )
    tls_key: OptionalPath = Field(None, description="PEM file with the private key of the certificate.")
    tls_client_ca: OptionalPath = Field(
        None,
        description="PEM file with the authorities that sign client certificates. Clients without such a certificate "
        "are rejected.",
    )
    tls_overlap: Seconds = Field(
        3600, description="Seconds that connections opened before a certificate renewal may stay open."
    )
    root_path: RootPath = Field(
        None,
        description="URL path under which a proxy exposes this server, like /models. Links in replies begin with it.",
    )
    trusted_proxy: Networks = Field(
        None,
        description="Networks of trusted proxies, in CIDR notation, or unix for Unix sockets; repeat the flag, or "
        "separate them by commas. X-Forwarded-For, -Proto and -Prefix are accepted from these only.",
    )
    data_dir: Path = Field(
        Path(".tidegate"), description="Directory for data that outlives the server, such as the SQLite file."
    )
    store: Annotated[str, AfterValidator(_known_store)] = Field(
        "sqlite",
        description="Store of durable sessions: sqlite (a file in data_dir), redis://HOST:PORT/DATABASE, or none to "
        "have no durable sessions.",
    )
    durable: bool = Field(
        False,
        description="Make sequences of the Open Inference Protocol durable. The protocol has no field to ask for this.",
    )
    sequences: bool = Field(
        True,
        description="Accept sequences of the Open Inference Protocol, whose state the server keeps between requests.",
    )
    sqlite_sync: Literal["normal", "full"] = Field(
        "normal",
        description="What a SQLite commit survives: the end of the process (normal), or also a power failure (full).",
    )
    store_timeout: Seconds = Field(2, description="Seconds to wait for an answer from the session store.")
    workers: int = Field(1, ge=1, le=1024, description="Number of worker processes that share the addresses.")
    provider: Provider = Field(
        "cpu", description="Device that models run on: cpu or cuda. The server does not start if it is unavailable."
    )
    threads: int = Field(1, ge=1, le=1024, description="Number of onnxruntime threads in one run.")
    execution: Literal["inline", "thread"] = Field(
        "inline", description="Where onnxruntime runs: in the event loop (inline) or in a separate thread (thread)."
    )
    cuda_graphs: bool = Field(
        False, description="Replay single steps as CUDA graphs, if a device arena holds the states."
    )
    allow_batch_dependence: bool = Field(
        False, description="Batch rows even for bundles that are not batch-invariant, such as dynamic int8."
    )
    arena: ArenaPlace = Field(
        "auto",
        description="Memory that holds session states: host, device (where the model runs), or auto (device with "
        "cuda, else host).",
    )
    arena_mb: int = Field(
        1024, ge=1, le=2**24, description="MiB for session states in each process, allocated as needed."
    )
    max_sessions: int = Field(
        250_000,
        ge=1,
        description="Largest number of sessions in a process, with cached copies of durable ones. Idle sessions are "
        "evicted first.",
    )
    replies_mb: int = Field(
        64,
        ge=0,
        description="MiB for the large last replies of ephemeral sessions. A repeated request gets such a reply again.",
    )
    evict_idle: float = Field(
        60,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that an ephemeral session must be idle before it can be evicted to make room.",
    )
    ttl_seconds: Limit = Field(
        None, description="Default lifetime of a session, in seconds; a request can override it."
    )
    idle_seconds: Limit = Field(
        86400,
        description="Default time without a step after which a session ends, in seconds; a request can override it.",
    )
    max_rows: int = Field(
        256, ge=1, description="Largest number of rows (sessions or sequences) in one run of a model."
    )
    max_steps: int = Field(
        4096, ge=1, description="Largest number of steps in one run of a model, summed over its rows."
    )
    max_queue: int = Field(16384, ge=1, description="Largest number of chunks that wait for a model; more are refused.")
    max_message_mb: float = Field(
        4, gt=0, le=1024, description="Largest size of a request, or of one message of a stream, in MiB."
    )
    max_url_kb: int = Field(8, ge=1, le=1024, description="Largest size of a request's URL, in KiB.")
    max_connections: int = Field(
        4096,
        ge=1,
        description="Largest number of connections per address; more have to wait. A low limit on open files reduces "
        "it.",
    )
    max_streams: int = Field(
        256, ge=1, le=65536, description="Largest number of concurrent requests on one HTTP/2 connection."
    )
    stream_window_kb: int = Field(
        1024,
        ge=64,
        le=2**20,
        description="Flow-control window of one HTTP/2 stream, in KiB: how much a client can send ahead.",
    )
    handshake_timeout: Seconds = Field(10, description="Seconds for the TLS handshake and the first bytes of HTTP/2.")
    keep_alive: Seconds = Field(
        620,
        description="Seconds that a connection without a request stays open. Over HTTP/1.1 it also bounds pauses in "
        "a request's head.",
    )
    stall_timeout: Seconds = Field(
        30, description="Seconds that a client may leave sent data unread before its stream or connection is closed."
    )
    ping_interval: Seconds = Field(
        30,
        description="Seconds between WebSocket pings, and for each answer. Without an answer the connection is closed.",
    )
    run_timeout: Seconds = Field(
        30, description="Seconds that one run of a model may take. A longer run is stopped and its rows fail."
    )
    load_timeout: Seconds = Field(
        120, description="Seconds that a model may take to load. A model that takes longer is refused."
    )
    request_timeout: Seconds = Field(60, description="Seconds for a request that sets no deadline.")
    max_head_kb: int = Field(
        64,
        ge=1,
        le=1024,
        description="Largest size of a request's URL and header fields, in KiB; each field counts 32 bytes extra.",
    )
    body_timeout: Seconds = Field(60, description="Seconds for the body of an HTTP request to arrive.")
    drain_timeout: float = Field(
        30, ge=0, allow_inf_nan=False, description="Seconds that running requests get to finish after SIGTERM."
    )
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,63}$")] | None = Field(
        None, description="Name of this server in session ids; random if unset."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged: debug, info, warning or error."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Format of log lines: console (for people) or json (one object per line)."
    )
    access_log: bool = Field(False, description="Log one line per request, with its target, outcome and duration.")
    otlp: Annotated[str | None, AfterValidator(_checked_url), BeforeValidator(_none_by_word)] = Field(
        None,
        description="http://HOST:PORT of an OpenTelemetry collector that receives traces by OTLP over gRPC. Needs "
        "the extra otel.",
    )
    models: Annotated[dict[str, ModelSettings], NoDecode] = Field(
        {}, description="Settings of single models, by name. These are tables of the TOML file, not flags or variables."
    )

    def of(self, model: str) -> Settings:
        """Return the settings of a model: the file's table of its name overrides everything else."""
        own = self.models.get(model)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True))


LISTS = frozenset({"trusted_proxy"})
"""Settings that can be given several times."""

REMOVED = {
    "native_grpc": "--http and --grpc both speak gRPC, from a server in Rust: there is no port beside them",
}
"""Former settings, and what replaces each."""

_OTHER_VARIABLES = frozenset(
    f"{ENVIRONMENT_PREFIX}{name}"
    for name in ("CONFIG", "SERVER", "TOKEN", "SERVER_HTTP", "CACHE", "TLS", "CA", "CLIENT_CERT", "CLIENT_KEY")
)
"""Variables that are no settings but are read too."""

_KUBERNETES = re.compile(r"_(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?)$")
"""Endings of the variables that Kubernetes sets for a service called tidegate or tidegate-something."""

FLAGS = tuple(name for name in Settings.model_fields if name != "models")
"""Settings that are flags and variables. The others are tables of the file."""


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Load the settings from ``flags`` (by field name, only those that were given), environment and TOML ``file``.

    Raises:
        ConfigurationError: A value is bad or a key unknown. The message names the flag, variable or file of the first.
    """
    table = {} if file is None else _read_table(file)
    _check_removed(flags, table, file)
    reader = _reader(table)
    try:
        return reader(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{_origin(first['loc'], flags, file)}: {_reason(first)}") from None


def misspelt_variables() -> list[str]:
    """Return a warning for each environment variable that looks like a misspelt setting.

    These are not errors, because Kubernetes sets variables like ``TIDEGATE_PORT`` beside a service of that name.
    """
    known = [f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in FLAGS]
    given = [name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)]
    unknown = [name for name in given if name.upper() not in {*known, *_OTHER_VARIABLES}]
    return [
        f"{shown(name)} is not a setting{meant}"
        for name in unknown
        if _KUBERNETES.search(name) is None and (meant := did_you_mean(name, known))
    ]


def _check_removed(flags: Mapping[str, Any], table: Mapping[str, Any], file: Path | None) -> None:
    variables = {name.upper() for name, value in os.environ.items() if value}
    for name, instead in REMOVED.items():
        if name in flags or f"{ENVIRONMENT_PREFIX}{name.upper()}" in variables or name in table:
            raise ConfigurationError(f"{_origin((name,), flags, file)}: no longer there: {instead}")


def _reader(table: dict[str, Any]) -> type[Settings]:
    """Return a class with ``table`` as a source below the environment: pydantic-settings binds sources to classes."""

    class FromTable(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=table)

    return FromTable


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        *tables, name = map(str, error["loc"])
        known = list(ModelSettings.model_fields if tables else Settings.model_fields)
        return f"no such setting{known_names(name, known, 'there are')}"
    message: str = error["msg"]
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        meant = did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        return f"{message[0].lower()}{message[1:]}, not {error['input']!r}{meant}"
    if error["type"] == "value_error":
        return message.removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}, not {error['input']!r}"


def _origin(place: tuple[int | str, ...], flags: Mapping[str, Any], file: Path | None) -> str:
    name = str(place[0])
    if name in flags:
        return flag(name)
    variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
    given = {key.upper() for key, value in os.environ.items() if value}
    if variable in given:
        return variable
    return f"{file}: {'.'.join(map(str, place)) if name == 'models' else name}"


def flag(name: str) -> str:
    """Return the flag of the setting ``name``."""
    return f"--{name.replace('_', '-')}"


def _read_table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from None
