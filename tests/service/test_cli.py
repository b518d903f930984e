"""The command line without a server: what it offers, how it fails, and what it does not import."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.bundles import write_endless_bundle, write_greedy_bundle, write_tiny_bundle, write_tiny_forecast_bundle
from tidegate import __version__
from tidegate.bundle import MANIFEST, read_bundle, write_bundle
from tidegate.cli import GROUP, Verbs, app, command_of
from tidegate.config import FLAGS

NOBODY = "127.0.0.1:1"
"""An address where no server can be: port 1 is below what users may bind."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"TIDEGATE_SERVER": None, "COLUMNS": "200"})


def test_help_lists_every_verb_with_its_own_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for verb in ("serve", "predict", "generate", "sessions", "check", "bench", "top"):
        assert f" {verb} " in result.output
        assert run(verb, "--help").exit_code == 0


def test_verbs_of_other_packages_are_found_by_their_entry_points() -> None:
    points = {
        "train": "tidegate_models.cli:train",
        "export": "tidegate_export.cli:export",
        "quantize": "tidegate_export.cli:quantize",
        "import": "tidegate_export.importing.cli:import_",
    }
    assert {point.name: point.value for point in entry_points(group=GROUP)} == points
    assert run("export", "--help").exit_code == 0


def test_help_imports_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, typer.testing; from tidegate.cli import app; "
        "print(typer.testing.CliRunner().invoke(app, ['--help']).exit_code, "
        "sorted({'torch', 'onnxruntime', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert result.stdout == "0 []\n"


def test_serve_does_not_load_the_client() -> None:
    code = (
        "import sys, tidegate.cli, tidegate.cli.serve, tidegate.server; "
        "print(sorted({'tidegate.client', 'httpx', 'onnx', 'prometheus_client'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert result.stdout == "[]\n"


def test_version() -> None:
    assert run("--version").output == f"tidegate {__version__}\n"


def test_every_setting_is_a_flag_of_serve() -> None:
    output = run("serve", "--help").output
    for name in FLAGS:
        assert f"--{name.replace('_', '-')}" in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("serve", "--http", "here"),
            "--http: 'here' is neither HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, nor unix:PATH",
        ),
        (("serve", "--workers", "0"), "--workers: input should be greater than or equal to 1, not '0'"),
        (
            ("serve", "--trusted-proxy", "unix", "--trusted-proxy", "proxy"),
            (
                "--trusted-proxy: 'proxy' does not appear to be an IPv4 or IPv6 network: "
                "give networks like 10.0.0.0/8 or 2001:db8::/32, addresses, or unix"
            ),
        ),
        (("serve", "--config", "absent.toml"), "absent.toml: No such file or directory"),
        (("predict", "m", "--server", NOBODY), "give a sequence: --text, --file, --csv, --tokens or --wav"),
        (("check", "absent"), "absent: no bundle there (NAME/VERSION/manifest.json)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], line: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr, result.stdout) == (2, f"tidegate: {line}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (b"predict", b"m", b"--text", b"caf\xe9"),
        (b"predict", b"caf\xe9", b"--text", b"a"),
        (b"predict", b"m", b"--file", b"caf\xe9"),
        (b"generate", b"m", b"--prompt", b"caf\xe9"),
        (b"generate", b"m", b"--prompt", b"a", b"--stop", b"caf\xe9"),
        (b"sessions", b"show", b"caf\xe9"),
        (b"bench", b"m", b"--version", b"caf\xe9"),
        (b"check", b"caf\xe9"),
    ],
)
def test_bytes_that_are_no_utf8_are_told_in_one_line(arguments: tuple[bytes, ...]) -> None:
    # What a shell passes on as it is, Python reads with half a surrogate pair for each such byte.
    result = run(*map(os.fsdecode, arguments))
    assert (result.exit_code in {1, 2}, result.stderr.count("\n"), result.stdout) == (True, 1, "")
    assert "caf\\udce9" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "m", "--text", "a"),
        ("generate", "m", "--prompt", "a"),
        ("sessions", "list"),
        ("sessions", "show", "s"),
        ("sessions", "close", "s"),
        ("bench", "m"),
    ],
)
def test_where_no_server_is_one_line_says_what_to_do(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--server", NOBODY)
    advice = "start one with `tidegate serve`, or name another with --server HOST:PORT"
    assert (result.exit_code, result.stderr) == (2, f"tidegate: no server answers at {NOBODY}: {advice}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EROFS, "Read-only file system", "bundles/tiny"), "bundles/tiny: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (TimeoutError("took too long"), "took too long"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: OSError, line: str) -> None:
    def fail() -> None:
        raise error

    class Failing(Verbs):
        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return command_of(cmd_name, fail)

    failing = typer.Typer(cls=Failing)
    failing.callback()(lambda: None)
    result = CliRunner().invoke(failing, ["verb"])
    assert (result.exit_code, result.stderr) == (1, f"tidegate: {line}\n")


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("check",)])
def test_unknown_verbs_and_flags_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(("tokens", "why"), [("1,b", "'1,b'"), ("", "''")])
def test_tokens_that_are_none_are_refused(tokens: str, why: str) -> None:
    result = run("predict", "m", "--tokens", tokens)
    assert (result.exit_code, result.stderr) == (1, f"tidegate: --tokens: {why} is not a list of ids like 17,4,9\n")


@pytest.mark.parametrize("given", ["limit", "=6", "limit=", "limit=loud", "limit=[1"])
def test_a_setting_that_is_none_is_refused(given: str) -> None:
    result = run("predict", "m", "--tokens", "1", "--input", given)
    assert result.exit_code == 1
    assert result.stderr == (
        f"tidegate: --input: {given!r} is not NAME=VALUE, with a number or a list of numbers like [0.1,0.2]\n"
    )


def test_an_unreadable_text_is_refused(tmp_path: Path) -> None:
    result = run("predict", "m", "--file", str(tmp_path / "absent.txt"))
    assert result.exit_code == 1
    assert "absent.txt" in result.stderr


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_check_proves_a_bundle(tmp_path: Path, cell: str) -> None:
    bundle = write_tiny_bundle(tmp_path, cell=cell)
    result = run("check", str(bundle), "--json")
    assert result.exit_code == 0
    (finding,) = json.loads(result.stdout)
    assert (finding["bundle"], finding["passed"]) == (str(bundle), True)
    assert finding["cases"] > 1


def test_check_takes_bundles_models_and_directories_of_models(tmp_path: Path) -> None:
    first, second = write_tiny_bundle(tmp_path), write_tiny_bundle(tmp_path, version="2")
    forecast = write_tiny_forecast_bundle(tmp_path)

    def checked(path: Path) -> list[str]:
        return [finding["bundle"] for finding in json.loads(run("check", str(path), "--json").stdout)]

    assert checked(second) == [str(second)]
    assert checked(first.parent) == [str(first), str(second)]
    assert checked(tmp_path) == [str(first), str(second), str(forecast)]


def test_check_fails_for_what_was_altered_and_tells_of_the_others(tmp_path: Path) -> None:
    good, bad = write_tiny_bundle(tmp_path), write_tiny_bundle(tmp_path, "altered")
    (bad / "vocabulary.json").write_text("{}")
    result = run("check", str(tmp_path), "--json")
    assert result.exit_code == 1
    findings = {finding["bundle"]: finding for finding in json.loads(result.stdout)}
    assert findings[str(good)]["passed"]
    assert findings[str(bad)]["reason"] == "CHECKSUM_MISMATCH"


def test_check_ends_what_never_ends_and_what_asks_for_all_memory(tmp_path: Path) -> None:
    endless = write_endless_bundle(tmp_path / "endless", above=-1e9)
    result = run("check", str(endless), "--time-limit", "2", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert finding["reason"] == "TIME_LIMIT"
    assert finding["message"] == "the graph does not come to an end within 2 seconds (--time-limit)"
    good, greedy = write_tiny_bundle(tmp_path / "models", "good"), write_greedy_bundle(tmp_path / "models")
    result = run("check", str(tmp_path / "models"), "--memory-limit", "2048", "--json")
    assert result.exit_code == 1
    findings = {finding["bundle"]: finding for finding in json.loads(result.stdout)}
    assert findings[str(good)]["passed"]
    assert findings[str(greedy)]["reason"] == "OUT_OF_MEMORY"
    assert findings[str(greedy)]["message"].endswith("(--memory-limit: 2048 MiB)")


def test_check_says_what_is_wrong_with_a_manifest_that_is_no_file(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)
    result = run("check", str(path), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["message"] == f"{path}/manifest.json: not a regular file"


def test_check_reads_the_codecs_file(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    manifest = read_bundle(path).manifest.model_copy(update={"version": "2"})
    files = {name: (path / name).read_bytes() for name in manifest.files}
    other = write_bundle(tmp_path, manifest, {**files, "vocabulary.json": b'{"tokens": []}'})
    result = run("check", str(other), "--json")
    assert "not a vocabulary" in json.loads(result.stdout)[0]["message"]


def test_check_prints_a_table(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    result = run("check", str(bundle))
    assert "passed" in result.stdout
    assert str(bundle) in result.stdout.replace("\n", "")
