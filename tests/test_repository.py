"""Rules of the repository that no tool checks by itself: who imports whom, and that the ban on imports bites."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The arrows of docs/architecture.md: package → what of ours it may import besides itself. The exporter writes bundles
# and proves them, by the code with which the service reads and `tidegate check` proves them again: the bundle, the
# proof, the replay of graphs and what is read off them under it, and the errors that these raise; and it calibrates the
# chart that the service keeps.
ARROWS = {
    "service/tidegate": frozenset[str](),
    "models/tidegate_models": frozenset[str](),
    "export/tidegate_export": frozenset(
        {
            "tidegate_models",
            "tidegate.bundle",
            "tidegate.proof",
            "tidegate.replay",
            "tidegate.reach",
            "tidegate.ort",
            "tidegate.sandbox",
            "tidegate.errors",
            "tidegate.drift",
        }
    ),
}
OURS = frozenset(Path(package).name for package in ARROWS)


def imported(source: str) -> set[str]:
    """Absolute module names in ``source``, those inside functions too; ``from a import b`` counts as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, modules: frozenset[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("package", ARROWS)
def test_packages_import_only_along_the_arrows(package: str) -> None:
    folder = ROOT / package
    others, allowed = OURS - {folder.name}, ARROWS[package]
    reversed_arrows = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted(folder.rglob("*.py"))
        for name in sorted(imported(file.read_text()))
        if within(name, others) and not within(name, allowed)
    ]
    assert reversed_arrows == []


# What the service is made of, from the bottom: each imports only what stands before it. `TYPE_CHECKING` is no
# way round it, nor is an import inside a function.
LAYERS = (
    "__init__", "limits", "errors", "clock", "protobuf", "signals", "throttle", "loopback", "histogram", "faults",
    "slices", "reply", "open_files", "memory", "sandbox", "onnx_file", "onnx_graph", "config", "bundle", "api", "drift",
    "ort", "watchdog", "v1", "oip", "wire", "codecs", "engine", "replay", "reach", "proof", "observability", "client",
    "sessions", "registry", "service", "transports", "server", "cluster", "loadgen", "top", "cli",
)  # fmt: skip


def service_imports() -> Iterator[tuple[str, str]]:
    """Every import between the service's modules, as dotted names below ``tidegate``."""
    package = ROOT / "service/tidegate"
    names = {
        ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
    }
    for name, file in names.items():
        for target in imported(file.read_text()):
            if within(target, frozenset({"tidegate"})):
                below = target.removeprefix("tidegate").removeprefix(".")
                while below not in names:
                    below = below.rpartition(".")[0] or "__init__"
                yield name, below


def test_the_service_imports_only_downward() -> None:
    heights = {name: height for height, name in enumerate(LAYERS)}
    upward = {
        f"{name} → {target}"
        for name, target in service_imports()
        if heights[name.partition(".")[0]] < heights[target.partition(".")[0]]
    }
    assert upward == set()


BANNED = [
    ("service/tidegate", "torch"),
    ("service/tidegate/engine", "torch.nn"),
    ("service/tidegate", "tidegate_models"),
    ("service/tidegate", "tidegate_export"),
    ("models/tidegate_models", "tidegate.bundle"),
    ("models/tidegate_models", "tidegate_export"),
]


def lint(folder: str, source: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--select=TID251", "--output-format=concise"]
    command += [f"--stdin-filename={folder}/example.py", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False, cwd=ROOT).stdout


@pytest.mark.parametrize(("folder", "module"), BANNED)
def test_lint_bans_the_import_even_inside_a_function(folder: str, module: str) -> None:
    assert "TID251" in lint(folder, f"def load():\n    import {module}\n")


def test_nobody_switches_the_ban_off() -> None:
    switched_off = re.compile(r"#\s*(ruff:\s*)?noqa:?[^\n]*TID251")
    offenders = [
        file for package in ARROWS for file in (ROOT / package).rglob("*.py") if switched_off.search(file.read_text())
    ]
    assert offenders == []


# Peers run in environments of their own, without tidegate: this one switches the telemetry off by itself.
ONNXRUNTIME = {"service/tidegate/ort.py", "bench/peers/lstm.py"}
# Its tools, which import onnxruntime themselves. Whoever imports one has imported tidegate before: the exporter in its
# package, the tests in their conftest.
ONNXRUNTIME_TOOLS = frozenset({"onnxruntime.quantization", "onnxruntime.transformers"})


def test_onnxruntime_is_imported_in_one_place_where_its_telemetry_is_off() -> None:
    others = [
        f"{file.relative_to(ROOT)}: {name}"
        for folder in ("service", "models", "export", "tests", "bench", "deploy", "docs")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if ".venv" not in file.parts and str(file.relative_to(ROOT)) not in ONNXRUNTIME
        for name in sorted(imported(file.read_text()))
        if within(name, frozenset({"onnxruntime"})) and not within(name, ONNXRUNTIME_TOOLS)
    ]
    assert others == []
    for file in ("export/tidegate_export/__init__.py", "tests/conftest.py"):
        assert "tidegate.errors" in imported((ROOT / file).read_text())


def test_every_service_release_is_named_in_the_changelog() -> None:
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_image_steps_run_what_the_dockerfile_runs() -> None:
    """.ci/image-steps proves the Dockerfile without a container engine, so it must call the same commands."""
    commands = set(re.findall(r"\.ci/image/[a-z-]+", (ROOT / "Dockerfile").read_text()))
    assert commands
    assert commands <= set(re.findall(r"\.ci/image/[a-z-]+", (ROOT / ".ci/image-steps").read_text()))


# A server's times are compared with each other: all come from the one `tidegate.clock.Clock` that the service is given.
# These are programs of their own, which wait and measure on the user's side.
OTHER_PROGRAMS = ("client", "loadgen", "top", "cli")
READINGS = re.compile(r"\btime\.(time|monotonic|perf_counter)(_ns)?\b|loop(\(\))?\.time\(\)|\bdatetime\.(now|utcnow)\b")


def test_a_server_reads_no_clock_but_its_own() -> None:
    package = ROOT / "service/tidegate"
    readers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] not in OTHER_PROGRAMS and READINGS.search(file.read_text())
    }
    assert readers == {"clock.py"}
