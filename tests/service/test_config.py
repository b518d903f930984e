"""Settings: where a value comes from, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tidegate.config import FLAGS, Address, Settings, flag, load_settings, parse_address
from tidegate.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TIDEGATE_{name.upper()}", raising=False)


def write(folder: Path, text: str) -> Path:
    file = folder / "tidegate.toml"
    file.write_text(text)
    return file


def test_defaults_serve_bundles_on_this_machine_only() -> None:
    settings = load_settings({})
    assert (settings.bundles, settings.http, settings.grpc) == (Path("bundles"), "127.0.0.1:8080", "127.0.0.1:8081")
    assert (settings.store, settings.provider, settings.replica) == ("sqlite", "cpu", None)


def test_flag_goes_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "max_rows = 1\nmax_steps = 1\nmax_queue = 1\n")
    monkeypatch.setenv("TIDEGATE_MAX_ROWS", "2")
    monkeypatch.setenv("TIDEGATE_MAX_STEPS", "2")
    settings = load_settings({"max_rows": "3"}, file)
    assert (settings.max_rows, settings.max_steps, settings.max_queue, settings.arena_mb) == (3, 2, 1, 1024)


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_THREADS", "")
    assert load_settings({}).threads == 1


def test_variables_that_kubernetes_sets_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_PORT", "tcp://10.0.0.7:8080")
    assert load_settings({}).http == "127.0.0.1:8080"


@pytest.mark.parametrize("text", ['idle_seconds = "none"', "idle_seconds = 5"])
def test_the_word_none_lifts_a_limit(tmp_path: Path, text: str) -> None:
    assert load_settings({}, write(tmp_path, text)).idle_seconds == (None if "none" in text else 5)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load_settings({}, write(tmp_path, "\ufeffmax_rows = 7")).max_rows == 7


def test_settings_never_change() -> None:
    settings = load_settings({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.threads = 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"http": "here"}, "--http: 'here' is neither HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, nor unix:PATH"),
        ({"grpc": "127.0.0.1:70000"}, "--grpc: '127.0.0.1:70000': a port is at most 65535"),
        ({"provider": "tpu"}, "--provider: input should be 'cpu' or 'cuda', not 'tpu'"),
        (
            {"store": "postgres://x"},
            "--store: 'postgres://x' is not a store: it is none, sqlite or redis://HOST:PORT/DATABASE",
        ),
        ({"store": "memory"}, "--store: 'memory' is called none now: it means that there are no durable sessions"),
        (
            {"store": "postgres://user:hunter2@x"},
            "--store: 'postgres://***@x' is not a store: it is none, sqlite or redis://HOST:PORT/DATABASE",
        ),
        ({"otlp": "ftp://user:p@ss@host"}, "--otlp: 'ftp://***@host' is not a URL like http://127.0.0.1:4317"),
        ({"workers": "0"}, "--workers: input should be greater than or equal to 1, not '0'"),
        ({"max_rows": "0"}, "--max-rows: input should be greater than or equal to 1, not '0'"),
        ({"request_timeout": "inf"}, "--request-timeout: input should be a finite number, not 'inf'"),
        ({"ttl_seconds": "1e12"}, "--ttl-seconds: input should be less than or equal to 3153600000, not '1e12'"),
        ({"replica": "a.b"}, "--replica: string should match pattern"),
        ({"root_path": "//host"}, "--root-path: '//host' is not a path like /models/tidegate"),
        ({"root_path": "models"}, "--root-path: 'models' is not a path like /models/tidegate"),
        ({"root_path": "/v1/x"}, "--root-path: '/v1/x': paths below /v1 and /v2 are the server's own: choose another"),
        ({"trusted_proxy": "10.0.0.1/8"}, "--trusted-proxy: 10.0.0.1/8 has host bits set: give networks like"),
        ({"trusted_proxy": "proxy"}, "--trusted-proxy: 'proxy' does not appear to be an IPv4 or IPv6 network: give"),
    ],
)
def test_a_bad_flag_is_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("given", ["10.0.0.0/8,::1, unix", ["10.0.0.0/8", "::1,unix"], ["10.0.0.0/8", "::1", "unix"]])
def test_a_list_has_commas_or_is_given_several_times(given: object) -> None:
    assert load_settings({"trusted_proxy": given}).trusted_proxy == ("10.0.0.0/8", "::1/128", "unix")


def test_a_list_comes_from_a_variable_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}, write(tmp_path, 'trusted_proxy = ["10.0.0.0/8", "unix"]')).trusted_proxy == (
        "10.0.0.0/8",
        "unix",
    )
    monkeypatch.setenv("TIDEGATE_TRUSTED_PROXY", "10.0.0.0/8,unix")
    assert load_settings({}).trusted_proxy == ("10.0.0.0/8", "unix")
    assert load_settings({"trusted_proxy": "none"}).trusted_proxy is None


@pytest.mark.parametrize(("given", "path"), [("/models/", "/models"), ("/a/b", "/a/b"), ("/", None), ("none", None)])
def test_a_root_path_has_no_slash_at_its_end(given: str, path: str | None) -> None:
    assert load_settings({"root_path": given}).root_path == path


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_THREADS", "many")
    with pytest.raises(ConfigurationError, match=r"^TIDEGATE_THREADS: input should be a valid integer"):
        load_settings({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 2", "thread: no such setting"),
        ("[serve]\nthreads = 2", "serve: no such setting"),
        ("threads = 'many'", "threads: input should be a valid integer"),
        ("threads =", "not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    assert caught.value.message.startswith(f"{file}: {message}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml: No such file or directory"):
        load_settings({}, tmp_path / "absent.toml")


def test_the_documentation_lists_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    _, _, section = page.partition("## Settings\n")  # another table has the options of clients
    settings, _, _ = section.partition("\n## ")
    rows = [line for line in settings.splitlines() if line.startswith("| `--") and "--config" not in line]
    assert rows == [documented(name) for name in FLAGS]


def documented(name: str) -> str:
    field = Settings.model_fields[name]
    default = "none" if field.default is None else field.default
    return f"| `{flag(name)}` | `{default}` | {field.description} |"


def test_a_table_of_the_file_says_what_holds_for_one_model(tmp_path: Path) -> None:
    file = write(tmp_path, 'max_rows = 8\n[models.speech]\nprovider = "cuda"\narena = "host"\n')
    settings = load_settings({"arena": "device"}, file)
    speech = settings.of("speech")
    assert (settings.provider, settings.arena) == ("cpu", "device")
    assert (speech.provider, speech.arena, speech.max_rows, speech.cuda_graphs) == ("cuda", "host", 8, False)
    assert settings.of("text") is settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.speech]\nprovider = 'tpu'\n", "models.speech.provider: input should be 'cpu' or 'cuda', not 'tpu'"),
        ("[models.speech]\nmax_rows = 8\n", "models.speech.max_rows: no such setting: there are "),
        ("models = 3\n", "models: input should be a valid dictionary, not 3"),
    ],
)
def test_a_bad_table_of_a_model_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    assert caught.value.message.startswith(f"{file}: {message}")


def test_tables_of_models_are_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS", '{"speech": {"provider": "cuda"}}')
    with pytest.raises(ConfigurationError, match="TIDEGATE_MODELS: input should be a valid dictionary"):
        load_settings({})


@given(
    host=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True) | st.ip_addresses().map(str),
    port=st.integers(0, 65535),
)
def test_addresses_are_read_as_they_are_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "::1:8080", "[::1]", "a/b:1", "a b:1", "a:-1", "a:٣"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_address(text)
