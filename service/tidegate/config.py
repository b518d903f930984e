"""What a server is told before it starts: frozen settings, parsed once.

Knows names, defaults and where a value came from: a flag goes before the environment (``TIDEGATE_…``), that before the
TOML file, that before the default. Knows nothing of how a setting is used.
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
"""The most seconds that a session may be given: what its end is told in holds no year beyond 9999."""

_REDIS = ("redis://", "rediss://")

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})", re.ASCII)


class Address(NamedTuple):
    """Where to listen: a host name or an address (IPv6 without brackets), and a port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, the host of IPv6 in brackets: ``127.0.0.1:8080``, ``localhost:0``, ``[::1]:8080``.

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
"""What the address of a Unix socket begins with; the rest is its path."""


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
    """Return a URL as it may be shown: without the user and the password that it may hold."""
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
    """TOML, flags and variables have no null: the word ``none`` lifts a limit."""
    return None if value == "none" else value


UNIX_PEERS = "unix"
"""Stands among networks for whoever connects to a Unix socket."""

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*", re.ASCII)
_OWN_PATHS = frozenset({"v1", "v2"})


def parse_root_path(text: str) -> str:
    """Return the path below which a proxy shows the server, without a slash at its end; empty for the whole host.

    Raises:
        ValueError: With what is wrong. What begins like a path of ours could not be told from it.
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
    """A list in one text has commas between its entries; the word ``none``, or nothing, is no list."""
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
    """What the file's table ``[models.NAME]`` may say of one model, in place of the setting of the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Provider | None = None
    arena: ArenaPlace | None = None
    cuda_graphs: bool | None = None
    allow_batch_dependence: bool | None = None
    durable: bool | None = None
    sequences: bool | None = None


class Settings(BaseSettings):
    """Everything a server can be told. The descriptions are the command line's help and docs/configuration.md."""

    # Unknown TIDEGATE_ variables are let through on purpose: Kubernetes sets TIDEGATE_PORT and the like for every pod
    # beside a service called tidegate. An unknown key in the file is an error.
    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    bundles: Path = Field(Path("bundles"), description="Directory of bundles: NAME/VERSION/manifest.json.")
    http: AddressText = Field(
        "127.0.0.1:8080", description="HOST:PORT or unix:PATH that speaks everything; port 0 takes a free one."
    )
    grpc: AddressText = Field("127.0.0.1:8081", description="A second address that speaks everything, likewise.")
    asgi_server: Literal["h2corn", "uvicorn"] = Field(
        "h2corn",
        description="h2corn, or the fallback: uvicorn for HTTP and WebSockets at --http, grpc.aio for gRPC at --grpc.",
    )
    tls_cert: OptionalPath = Field(
        None, description="PEM file of the server's certificate and its chain: both ports speak TLS, Unix sockets not."
    )
    tls_key: OptionalPath = Field(None, description="PEM file of the certificate's key.")
    tls_client_ca: OptionalPath = Field(
        None, description="PEM file of who signs clients' certificates: clients without one are turned away."
    )
    tls_overlap: Seconds = Field(
        3600, description="Seconds that connections may last that were opened before the certificate was renewed."
    )
    root_path: RootPath = Field(
        None, description="Path below which a proxy in front shows this server, like /models; links begin with it."
    )
    trusted_proxy: Networks = Field(
        None,
        description="Networks (CIDR, or unix for Unix sockets; several times, or with commas) of proxies whose "
        "X-Forwarded-For, -Proto and -Prefix are believed.",
    )
    data_dir: Path = Field(Path(".tidegate"), description="Where this server keeps what must outlive it.")
    store: Annotated[str, AfterValidator(_known_store)] = Field(
        "sqlite",
        description="Where durable sessions are kept: sqlite (under data_dir), redis://HOST:PORT/DATABASE, or none: "
        "there are no durable sessions then.",
    )
    durable: bool = Field(
        False,
        description="Make the sequences of the Open Inference Protocol, which cannot ask for it, durable sessions.",
    )
    sequences: bool = Field(
        True, description="Let clients of the Open Inference Protocol keep sequences of the models."
    )
    sqlite_sync: Literal["normal", "full"] = Field(
        "normal", description="What a commit to SQLite survives: the end of the process (normal), or of power (full)."
    )
    store_timeout: Seconds = Field(2, description="Seconds that the store of sessions may take for an answer.")
    workers: int = Field(1, ge=1, le=1024, description="Processes that serve, behind the same ports.")
    provider: Provider = Field("cpu", description="Where models run: cpu or cuda; fatal if not there.")
    threads: int = Field(1, ge=1, le=1024, description="Threads of onnxruntime inside one run.")
    execution: Literal["inline", "thread"] = Field(
        "inline", description="Whether onnxruntime runs in the event loop (inline) or beside it (thread)."
    )
    cuda_graphs: bool = Field(
        False, description="Replay single steps as CUDA graphs, where a device arena holds the states."
    )
    allow_batch_dependence: bool = Field(
        False, description="Batch the rows of bundles that are not batch-invariant (dynamic int8) all the same."
    )
    arena: ArenaPlace = Field(
        "auto", description="Where states lie: host, device (where the model runs), or auto (device with cuda)."
    )
    arena_mb: int = Field(1024, ge=1, le=2**24, description="MiB for the states of running sessions, taken as needed.")
    max_sessions: int = Field(
        250_000, ge=1, description="Sessions that a process holds, copies of durable ones too; idle ones leave first."
    )
    replies_mb: int = Field(64, ge=0, description="MiB for sessions' last replies, kept for a repeat, that are large.")
    evict_idle: float = Field(
        60, ge=0, allow_inf_nan=False, description="Seconds idle before a full arena may evict an ephemeral session."
    )
    ttl_seconds: Limit = Field(None, description="A session ends this long after opening, unless it says so.")
    idle_seconds: Limit = Field(86400, description="A session ends this long after its last step, likewise.")
    max_rows: int = Field(256, ge=1, description="Rows (sessions or sequences) in one run of a model.")
    max_steps: int = Field(4096, ge=1, description="Steps of all rows together in one tick of a model.")
    max_queue: int = Field(16384, ge=1, description="Chunks that may wait for a model; more are refused.")
    max_message_mb: float = Field(4, gt=0, le=1024, description="MiB of one request or one message of a stream.")
    max_url_kb: int = Field(8, ge=1, le=1024, description="KiB of a request's URL.")
    max_connections: int = Field(
        4096, ge=1, description="Connections of one address at once; further ones wait. Fewer where open files are few."
    )
    max_streams: int = Field(256, ge=1, le=65536, description="Requests at once on one HTTP/2 connection.")
    stream_window_kb: int = Field(
        1024, ge=64, le=2**20, description="KiB that a client may send ahead on one HTTP/2 stream."
    )
    handshake_timeout: Seconds = Field(10, description="Seconds for TLS and the first bytes of HTTP/2.")
    keep_alive: Seconds = Field(
        620, description="Seconds that a connection without a request stays open; over HTTP/1.1 also those for a head."
    )
    stall_timeout: Seconds = Field(30, description="Seconds that a client may leave what it is sent unread.")
    ping_interval: Seconds = Field(
        30, description="Seconds between pings of a WebSocket; one that leaves a ping unanswered as long is closed."
    )
    run_timeout: Seconds = Field(
        30, description="Seconds that one run of a model may take; one that takes longer is ended, and its rows fail."
    )
    load_timeout: Seconds = Field(
        120, description="Seconds that a model may take to load; one that takes longer is refused."
    )
    request_timeout: Seconds = Field(60, description="Seconds for a request that brings no deadline.")
    max_head_kb: int = Field(
        64, ge=1, le=1024, description="KiB of a request's URL and header fields, each with 32 bytes more."
    )
    body_timeout: Seconds = Field(60, description="Seconds that the body of a request over HTTP may take to come.")
    drain_timeout: float = Field(
        30, ge=0, allow_inf_nan=False, description="Seconds that running requests get to finish after SIGTERM."
    )
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,63}$")] | None = Field(
        None, description="This server's name in the ids of sessions; random if unset."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged: debug, info, warning or error."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console (for people) or json (an object a line)."
    )
    access_log: bool = Field(False, description="A line a request: what was asked for, how it ended, how long it took.")
    otlp: Annotated[str | None, AfterValidator(_checked_url), BeforeValidator(_none_by_word)] = Field(
        None, description="http://HOST:PORT of an OpenTelemetry collector (OTLP over gRPC) for traces (extra otel)."
    )
    models: Annotated[dict[str, ModelSettings], NoDecode] = Field(
        {}, description="Settings of single models, by name: tables of the file, neither flags nor variables."
    )

    def of(self, model: str) -> Settings:
        """Return the settings that hold for a model: the file's table of its name goes before everything else."""
        own = self.models.get(model)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True))


LISTS = frozenset({"trusted_proxy"})
"""The settings that may be given several times."""

REMOVED = {
    "native_grpc": "--http and --grpc both speak gRPC, from a server in Rust: there is no port beside them",
}
"""What was a setting once, and what is in its place."""

_OTHER_VARIABLES = frozenset(
    f"{ENVIRONMENT_PREFIX}{name}"
    for name in ("CONFIG", "SERVER", "TOKEN", "SERVER_HTTP", "CACHE", "TLS", "CA", "CLIENT_CERT", "CLIENT_KEY")
)
"""Variables that are read beside the settings'."""

_KUBERNETES = re.compile(r"_(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?)$")
"""What Kubernetes tells of a service called tidegate, or tidegate-something, ends so."""

FLAGS = tuple(name for name in Settings.model_fields if name != "models")
"""The settings that are flags and variables; the others are tables of the file."""


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Return the settings from ``flags`` (by field name, only those that were given), environment and TOML ``file``.

    Raises:
        ConfigurationError: On the first bad value or unknown key, with the flag, variable or file that it came from.
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
    """Return a warning for each variable of the environment that looks like a setting's and is none.

    It is no error: Kubernetes sets variables like ``TIDEGATE_PORT`` beside a service of that name.
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
    """The settings with ``table`` as a source below the environment; pydantic-settings binds sources to classes."""

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
    """Return the command line's spelling of the setting ``name``."""
    return f"--{name.replace('_', '-')}"


def _read_table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from None
