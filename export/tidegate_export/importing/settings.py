"""Settings of a foreign graph, inputs that callers may set: constants while it is explored, inputs again afterwards.

What is found out with the default holds for other values only if the graph says so; parity and proof run others. An
`If` on a setting is no settled question (`branches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tidegate.bundle import BATCH, TIME, Axis, SettingSpec, StateSpec, TensorSpec
from tidegate.errors import BundleError, known_names
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import copied, renamed, with_constants
from tidegate_export.importing.flow import SETTING
from tidegate_export.importing.foreign import Array, Arrays, Declared, Foreign, random_array
from tidegate_export.importing.plan import Axes, Found, num_overlapping, sized
from tidegate_export.importing.request import parse_constant

_ROWS, _STEPS = 3, 2
_MOST_AXES = 5


def read_settings(said: Mapping[str, str], inputs: Mapping[str, Declared]) -> dict[str, Array]:
    """Return the defaults of the settings that were said, each for one row.

    Raises:
        ExportError: There is no such input, or the default does not fit it.
    """
    for name in said:
        if name not in inputs:
            there = known_names(name, sorted(inputs), "it has")
            raise ExportError(f"--setting: the graph has no input {name!r}{there}")
    return {
        name: parse_constant(name, text, inputs[name].dtype, inputs[name].dims or (), option="--setting")
        for name, text in said.items()
    }


def with_settings_fixed(
    model: onnx.ModelProto, defaults: Mapping[str, Array], inputs: Mapping[str, Declared]
) -> onnx.ModelProto:
    """Return the model with its settings as constants, which `with_settings` finds again."""
    if not defaults:
        return model
    fixed = copied(model)
    renamed(fixed.graph, {name: f"{name}/set" for name in defaults})
    for node in reversed([helper.make_node("Identity", [name], [f"{name}/set"]) for name in defaults]):
        fixed.graph.node.insert(0, node)
    fixed = with_constants(fixed, defaults, inputs)
    constants = {item.name: item for item in fixed.graph.initializer}
    for name in defaults:
        constant = constants.get(f"{name}/value") or constants[name]  # the former where it follows the rows
        renamed(fixed.graph, {constant.name: f"{name}{SETTING}"})
        constant.name = f"{name}{SETTING}"
    return fixed


def with_settings(found: Found, defaults: Mapping[str, Array], inputs: Mapping[str, Declared]) -> Found:
    """Return `found` with its settings as inputs again.

    Raises:
        ExportError: One has a value for each step.
    """
    if not defaults:
        return found
    settings = tuple(_spec(name, value, inputs, found) for name, value in defaults.items())
    return replace(found, model=with_settings_free(found.model, settings), settings=settings)


def with_settings_free(fixed: onnx.ModelProto, settings: Sequence[SettingSpec]) -> onnx.ModelProto:
    """Return a model with inputs in the place of the constants that `with_settings_fixed` made."""
    model, names = copied(fixed), [spec.name for spec in settings]
    constants = {f"{name}{SETTING}" for name in names}
    kept = [item for item in model.graph.initializer if item.name not in constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    renamed(model.graph, {name: f"{name}/rows" for name in names})
    renamed(model.graph, {f"{name}{SETTING}": name for name in names})
    model.graph.input.extend(_declaration(spec) for spec in settings)
    return model


def _spec(name: str, value: Array, inputs: Mapping[str, Declared], found: Found) -> SettingSpec:
    known = {spec.name: spec.axes for spec in (*found.data, *found.outputs)}
    known |= {state.input: state.axes for state in found.states}
    axes: list[Axis] = []
    for dim in inputs[name].dims or ():
        if isinstance(dim, int):
            axes.append(dim)
            continue
        shared = {
            known[other.name][other.dims.index(dim)]
            for other in inputs.values()
            if other.name in known and other.dims is not None and dim in other.dims
            if len(other.dims) == len(known[other.name])
        }
        if TIME in shared:
            raise ExportError(
                f"--setting {name}: it has a value for each step (axis {dim!r}): it is data, leave it out"
            )
        axes.append(BATCH if BATCH in shared and BATCH not in axes else 1)
    return _setting(name, value, tuple(axes))


def _setting(name: str, value: Array, axes: Axes) -> SettingSpec:
    numbers = value.astype(np.float64).ravel()
    default = numbers[:1] if (numbers == numbers[0]).all() else numbers
    return SettingSpec(name=name, dtype=value.dtype.name, axes=axes, default=tuple(default.tolist()))  # type: ignore[arg-type]


def _declaration(spec: SettingSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.axes)
    )


# ---- a value for each row


def with_settings_by_row(found: Found) -> Found:
    """Return `found` with a value of each setting for each row where the graph takes one for the whole run.

    That is taken only if rows together, each with values of its own, give what each gives alone. Else the setting has
    no batch, and rows run one by one.
    """
    if not found.has_batch:
        return found
    for spec in found.settings:
        if BATCH not in spec.axes:
            tried = _by_row(found, spec)
            found = next((better for better in tried if _are_rows_alone(found, better, spec.name)), found)
    return found


def _by_row(found: Found, spec: SettingSpec) -> Iterator[Found]:
    """Yield `found` with the setting's values along a batch axis: one that it has with one element, or a new one."""
    places = [at for at, axis in enumerate(spec.axes) if axis == 1]
    for at in places:
        axes = (*spec.axes[:at], BATCH, *spec.axes[at + 1 :])
        yield _with_input(found, spec, axes, None)
    for rank in range(len(spec.axes) + 1, _MOST_AXES + 1):
        for at in range(min(rank - len(spec.axes), 2)):
            shape = [1] * rank
            for place, axis in enumerate(reversed(spec.axes)):
                shape[rank - 1 - place] = int(axis)
            shape[at] = -1
            yield _with_input(found, spec, (BATCH, *spec.axes), shape)


def _with_input(found: Found, spec: SettingSpec, axes: Axes, shape: Sequence[int] | None) -> Found:
    """Give the setting other axes; the graph sees it in `shape`, if that is said."""
    model, name = copied(found.model), spec.name
    better = spec.model_copy(update={"axes": axes})
    kept = [item for item in model.graph.input if item.name != name]
    del model.graph.input[:]
    model.graph.input.extend([*kept, _declaration(better)])
    del model.graph.value_info[:]
    if shape is not None:
        renamed(model.graph, {name: f"{name}/by_row"})
        constant = numpy_helper.from_array(np.array(shape, np.int64), f"{name}/by_row/shape")
        model.graph.initializer.append(constant)
        model.graph.node.insert(0, helper.make_node("Reshape", [name, constant.name], [f"{name}/by_row"]))
    settings = tuple(better if each.name == name else each for each in found.settings)
    return replace(found, model=model, settings=settings)


def _are_rows_alone(found: Found, better: Found, name: str) -> bool:
    """Whether rows with a setting `name` of their own give together what each gives alone."""
    rng = np.random.default_rng(3)
    try:
        before, after = Foreign(found.model), Foreign(better.model)
        rows, alone = _run_alone(before, found, name, rng)
        # In other numbers of rows, too: values for as many rows as another axis has elements could follow that axis.
        counts = range(2, len(rows) + 1)
        together = {count: after.run(_stacked(better, rows[:count])) for count in counts}
    except ExportError:  # it does not load or run so
        return False
    results = {spec.name: spec.axes for spec in found.outputs} | {state.output: state.axes for state in found.states}
    return all(
        BATCH in axes
        and excess(np.concatenate([run[result] for run in alone[:count]], axes.index(BATCH)), together[count][result])
        <= ABSOLUTE
        for result, axes in results.items()
        for count in counts
    )


def _run_alone(before: Foreign, found: Found, name: str, rng: np.random.Generator) -> tuple[list[Arrays], list[Arrays]]:
    """Return the inputs of rows of which the setting `name` differs, and what each gives alone.

    Raises:
        ExportError: The graph runs on no other value than the default.
    """
    (spec,) = (spec for spec in found.settings if spec.name == name)
    rows, alone = [], []
    for value in (setting_of(spec), *others(spec, rng)):
        row = {**_feeds(found, rng), name: value}
        with suppress(ExportError):  # which whole numbers it may be, nobody knows
            alone.append(before.run(row))
            rows.append(row)
        if len(rows) == _ROWS:
            break
    if len(rows) < 2:
        raise ExportError(f"--setting {name}: the graph runs on its default only")
    return rows, alone


def others(spec: SettingSpec, rng: np.random.Generator) -> Iterator[Array]:
    """Yield values beside a setting's default; of whole numbers such as the graph may refuse."""
    default = setting_of(spec)
    if spec.dtype == "bool":
        yield np.logical_not(default)
    elif spec.dtype.startswith("float"):
        for _ in range(_ROWS):
            yield np.asarray(default + rng.uniform(0.1, 1.0, default.shape), spec.dtype)
    else:
        least = np.iinfo(spec.dtype).min
        for step in (1, -1, 2, -2):
            if (default >= least + 2).all() or step > 0:
                yield np.asarray(default + step, spec.dtype)


def _feeds(found: Found, rng: np.random.Generator) -> Arrays:
    """Return two steps of one row, random states, and the defaults of settings."""
    steps = 1 if found.is_frame else _STEPS
    feeds = {
        spec.name: random_array(spec.dtype, sized(spec.axes, 1, steps + num_overlapping(found, spec)), rng)
        for spec in found.data
    }
    for state in found.states:
        shape = sized(state.axes, 1, 1)
        is_float = state.dtype.startswith("float")
        feeds[state.input] = random_array(state.dtype, shape, rng) if is_float else np.zeros(shape, state.dtype)
    if found.lengths is not None:
        raise ExportError("lengths follow the batch")
    return feeds | {spec.name: setting_of(spec) for spec in found.settings}


def have_rows_their_own(runner: GraphRunner) -> bool:
    """Whether rows of a bundle with whole numbers of their own as settings give what each gives alone.

    The streaming proof says so of other settings, whose values it knows to vary.
    """
    manifest, rng = runner.manifest, np.random.default_rng(4)
    for spec in manifest.settings:
        if spec.dtype.startswith("float") or spec.batch_axis is None:
            continue
        rows, alone = [], []
        for value in (setting_of(spec), *others(spec, rng)):
            row = {**random_inputs(manifest, 1, _STEPS, rng), spec.name: value}
            with suppress(BundleError):  # as above
                alone.append(runner.walk(row, [_STEPS]))
                rows.append(row)
        together = runner.walk(runner.stack(rows, manifest.sources), [_STEPS])
        for index, each in enumerate(alone):
            found = runner.row_of(together, index)
            if any(excess(array, found.outputs[name]) > ABSOLUTE for name, array in each.outputs.items()):
                return False
    return True


def setting_of(spec: SettingSpec) -> Array:
    """Return a setting's default for one row, as the graph takes it."""
    value = np.broadcast_to(np.array(spec.default), (int(np.prod(spec.row_shape, dtype=np.int64)),))
    return value.reshape(sized(spec.axes, 1, 1)).astype(spec.dtype)


def _stacked(found: Found, rows: Sequence[Arrays]) -> Arrays:
    specs: tuple[TensorSpec | StateSpec, ...] = (*found.data, *found.states, *found.settings)
    stacked = {}
    for spec in specs:
        name = spec.input if isinstance(spec, StateSpec) else spec.name
        parts = [row[name].reshape(sized(spec.axes, 1, _num_steps(row[name], spec))) for row in rows]
        stacked[name] = np.concatenate(parts, spec.axes.index(BATCH)) if BATCH in spec.axes else parts[0]
    return stacked


def _num_steps(array: Array, spec: TensorSpec | StateSpec) -> int:
    return int(array.shape[spec.axes.index(TIME)]) if TIME in spec.axes else 1
