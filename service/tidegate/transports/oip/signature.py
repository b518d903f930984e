"""A model as the protocol shows it: its graph's inputs and outputs, without states and lengths, as the graph has them.

Shapes have -1 where an axis varies. Where the batch is the first axis of all tensors it is the protocol's batch, and
``max_batch`` says how large it may be; a graph with its batch elsewhere, or without one, shows its whole shapes and a
``max_batch`` of 0. The time axis is always an axis of its own.

Turns a request's tensors into the rows that the core takes, [steps, …] each, and the core's outputs back: the two are
inverse. Knows nothing of transports and sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tidegate.api import Tensor, check_steps
from tidegate.bundle import BATCH, TIME, Manifest, SettingSpec, TensorSpec, TokenCodec
from tidegate.codecs.settings import default_of
from tidegate.errors import InvalidInputError, TooLargeError, known_names, shown
from tidegate.transports.oip.tensors import NAMES, NamedTensor

Row = tuple[Tensor, ...]
"""The graph's inputs of one sequence, [steps, …] each, then a value of each of the model's settings."""


class Port(NamedTuple):
    """One tensor of the graph. ``order`` are its axes in the core's order, batch and time first; None where they are
    in that order. ``unit_bytes`` has one row of one step, as far as its sizes are known.
    """

    name: str
    dtype: np.dtype[np.generic]
    datatype: str
    shape: tuple[int, ...]
    has_batch: bool
    has_time: bool
    order: tuple[int, ...] | None
    unit_bytes: int

    def check(self, array: Tensor) -> None:
        """Raise InvalidInputError unless the array has the port's datatype and a shape that fits."""
        if array.dtype != self.dtype:
            given = NAMES.get(array.dtype, array.dtype.name)
            raise InvalidInputError(f"input {self.name!r} is {self.datatype}, not {given}", reason="WRONG_DATATYPE")
        if not self.fits(array.shape):
            raise InvalidInputError(
                f"input {self.name!r} has the shape {list(self.shape)} (-1 varies), which {list(array.shape)} is not",
                reason="WRONG_SHAPE",
            )
        if array.size == 0:
            raise InvalidInputError(f"input {self.name!r} is empty: it needs a step at least", reason="EMPTY_SEQUENCE")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one of the port's."""
        return len(shape) == len(self.shape) and all(map(_fits, self.shape, shape))

    def canonical(self, array: Tensor) -> Tensor:
        """The array as [batch, steps, …]; one without a batch, or without time, has one row, or one step."""
        ordered = array if self.order is None else array.transpose(self.order)
        if not self.has_batch:
            ordered = ordered[None]
        return ordered if self.has_time else ordered[:, None]

    def graphic(self, array: Tensor) -> Tensor:
        """The inverse of `canonical`."""
        if not self.has_time:
            array = array[:, -1]
        if not self.has_batch:
            array = array[0]
        return array if self.order is None else array.transpose(np.argsort(self.order))


class SettingPort(NamedTuple):
    """A setting, an input that a request may leave out: then it is ``default``, of the shape of one row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    default: Tensor

    def rows(self, array: Tensor | None, num_rows: int) -> list[Tensor]:
        """Return each row's value: its own, or the one that is given for all.

        Raises:
            InvalidInputError: The array has another datatype or shape, or holds a number that is none.
        """
        if array is None:
            return [self.default] * num_rows
        if array.dtype != self.default.dtype:
            given = NAMES.get(array.dtype, array.dtype.name)
            raise InvalidInputError(f"input {self.name!r} is {self.datatype}, not {given}", reason="WRONG_DATATYPE")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(f"input {self.name!r}: a value is not finite", reason="NOT_FINITE")
        for count in (num_rows, 1):
            wanted = (count, *self.default.shape)
            if array.size == math.prod(wanted) and _longer(array.shape) == _longer(wanted):
                rows = array.reshape(wanted)
                return [rows[min(row, count - 1), ...] for row in range(num_rows)]
        raise InvalidInputError(
            f"input {self.name!r} has the shape {list(self.shape)} (-1: one value for each row, or one for all), which "
            f"{list(array.shape)} is not",
            reason="WRONG_SHAPE",
        )


class Signature:
    """The tensors of one version of a model.

    Args:
        manifest: Of its bundle.
        max_rows: Rows that one request may have.
        max_reply: Bytes that a reply may have.
    """

    def __init__(self, manifest: Manifest, max_rows: int, max_reply: int) -> None:
        self.inputs = tuple(map(_port, manifest.inputs))
        self.outputs = {spec.name: _port(spec) for spec in manifest.outputs}
        specs = (*manifest.inputs, *manifest.outputs)
        self.max_batch = max_rows if all(spec.batch_axis == 0 for spec in specs) else 0
        self.settings = tuple(_setting_port(spec, has_batch=self.max_batch > 0) for spec in manifest.settings)
        self._all = tuple(self.outputs.values())
        self._all_sizes = _sizes(self._all)
        self._by_name = {port.name: port for port in self.inputs}
        self._known = (*self._by_name, *(port.name for port in self.settings))
        self._max_rows = max_rows
        self._max_reply = max_reply
        self._vocabulary = _vocabulary(manifest)

    def rows(self, tensors: Sequence[NamedTensor]) -> list[Row]:
        """The rows of a request; all have equally many steps.

        Raises:
            InvalidInputError: A tensor is missing, unknown, or of another datatype or shape; or its values cannot be.
            TooLargeError: There are more rows than one request may have.
        """
        given = dict(tensors)
        self._check_names(given)
        arrays = []
        for port in self.inputs:
            array = given[port.name]
            port.check(array)
            self._check_values(port, array)
            arrays.append(port.canonical(array))
        if len(arrays) > 1 and len({array.shape[:2] for array in arrays}) > 1:
            found = ", ".join(f"{port.name} {list(given[port.name].shape)}" for port in self.inputs)
            raise InvalidInputError(f"the inputs differ in batch or time: {found}", reason="WRONG_SHAPE")
        num_rows = len(arrays[0])
        if num_rows > self._max_rows:
            raise InvalidInputError(
                f"a batch has at most {self._max_rows} rows, not {num_rows}", reason="BATCH_TOO_LARGE"
            )
        check_steps(num_rows * arrays[0].shape[1])
        settings = [port.rows(given.get(port.name), num_rows) for port in self.settings]
        return list(zip(*arrays, *settings, strict=True))

    def wanted(self, names: Sequence[str]) -> Sequence[Port]:
        """The outputs of these names, all where there are none; InvalidInputError where one is unknown."""
        if not names:
            return self._all
        for name in names:
            if name not in self.outputs:
                raise InvalidInputError(
                    f"unknown output {shown(name)}{known_names(name, self.outputs, 'the model has')}",
                    reason="UNKNOWN_TENSOR",
                )
        return [self.outputs[name] for name in names]

    def check_reply(self, wanted: Sequence[Port], rows: Sequence[Row]) -> None:
        """Raise TooLargeError where the reply would be too large, before anything is run for it."""
        per_row, per_step = self._all_sizes if wanted is self._all else _sizes(wanted)
        size = len(rows) * (per_row + len(rows[0][0]) * per_step)
        if size > self._max_reply:
            raise TooLargeError(
                f"the reply would have about {size} bytes, over the limit of {self._max_reply}: send fewer steps, or "
                "name the outputs that you want",
                reason="REPLY_TOO_LARGE",
            )

    def collect(self, wanted: Sequence[Port], outputs: Sequence[Mapping[str, Tensor]]) -> list[NamedTensor]:
        """The outputs of a request from those of its rows, [steps, …] each."""
        if len(outputs) == 1:
            (row,) = outputs
            return [NamedTensor(port.name, port.graphic(row[port.name][None])) for port in wanted]
        return [NamedTensor(port.name, port.graphic(np.stack([row[port.name] for row in outputs]))) for port in wanted]

    def _check_names(self, given: Mapping[str, Tensor]) -> None:
        if given.keys() == self._by_name.keys():
            return
        for name in given:
            if name not in self._known:
                raise InvalidInputError(
                    f"unknown input {shown(name)}{known_names(name, self._known, 'the model has')}",
                    reason="UNKNOWN_TENSOR",
                )
        for name in self._by_name:
            if name not in given:
                raise InvalidInputError(f"the input {name!r} is missing", reason="MISSING_TENSOR")

    def _check_values(self, port: Port, array: Tensor) -> None:
        """What no graph computes with: an id outside the vocabulary, a number that is none."""
        if self._vocabulary is not None and not _are_below(array, self._vocabulary):
            raise InvalidInputError(
                f"input {port.name!r}: token ids go from 0 to {self._vocabulary - 1}", reason="TOKEN_OUT_OF_RANGE"
            )
        if port.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(f"input {port.name!r}: a value is not finite", reason="NOT_FINITE")


def _sizes(ports: Sequence[Port]) -> tuple[int, int]:
    """The bytes of a row, and of each of its steps."""
    return (
        sum(port.unit_bytes for port in ports if not port.has_time),
        sum(port.unit_bytes for port in ports if port.has_time),
    )


def _longer(shape: tuple[int, ...]) -> list[int]:
    """A shape without its ones: they do not change which number is which."""
    return [size for size in shape if size != 1]


def _fits(size: int, given: int) -> bool:
    return size in (-1, given)


def _are_below(ids: Tensor, limit: int) -> bool:
    """Whether all ids are from 0 to below ``limit``."""
    if ids.size == 1:
        return bool(0 <= ids.item() < limit)
    # A negative id, looked at without its sign, is above every vocabulary.
    return bool(ids.view(f"u{ids.itemsize}").max() < limit)


def _port(spec: TensorSpec) -> Port:
    named = [spec.axes.index(axis) for axis in (BATCH, TIME) if axis in spec.axes]
    order = (*named, *(axis for axis in range(len(spec.axes)) if axis not in named))
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in spec.axes)
    is_canonical = order == tuple(range(len(order)))
    dtype = np.dtype(spec.dtype)
    return Port(
        name=spec.name,
        dtype=dtype,
        datatype=NAMES[dtype],
        shape=shape,
        has_batch=BATCH in spec.axes,
        has_time=TIME in spec.axes,
        order=None if is_canonical else order,
        unit_bytes=dtype.itemsize * math.prod(axis for axis in spec.axes if isinstance(axis, int)),
    )


def _setting_port(spec: SettingSpec, *, has_batch: bool) -> SettingPort:
    value = spec.row_shape or (1,)
    is_by_row = has_batch or spec.batch_axis is not None
    datatype = NAMES[np.dtype(spec.dtype)]
    return SettingPort(spec.name, datatype, (-1, *value) if is_by_row else value, default_of(spec))


def _vocabulary(manifest: Manifest) -> int | None:
    """How many tokens the model knows, None where its input is none or the graph does not say."""
    if not isinstance(manifest.codec, TokenCodec):
        return None
    size = manifest.output(manifest.codec.output).axes[-1]
    return size if isinstance(size, int) else None
