"""Columns: steps of many sessions packed into one message, and their answers.

This is the path of most steps per second, so repeated fields are read and written once a message, and nothing is built
per lane where the lanes go together. Knows no sessions: which lane is whose is the stream's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.api import (
    Candidate,
    Drift,
    FloatArray,
    Input,
    InputValue,
    Prediction,
    Predictions,
    RowSteps,
    StepOptions,
    StepResult,
    Tensor,
    check_steps,
)
from tidegate.errors import InvalidInputError, TidegateError, TooLargeError
from tidegate.faults import conceal
from tidegate.slices import Slices, at_once
from tidegate.v1 import predictor_pb2
from tidegate.wire.errors import decode_error, fill_error
from tidegate.wire.inputs import decode_options, decode_values, fill_ask, fill_values
from tidegate.wire.predictions import decode_drift, decode_tensors, fill_drift, fill_tensors
from tidegate.wire.settings import decode_inputs, fill_inputs

log = logging.getLogger(__name__)

_TOLD_WHOLE = 1024
"""Errors of one reply that are told with their message: a reply may have one for each of 65,536 lanes."""

_ENVELOPE_BYTES = 64
_LANES_AT_ONCE = 512
_NUMBERS_AT_ONCE = 2048
"""Of a stream's message around the reply that it carries."""


class ReplyBlock(NamedTuple):
    """Answers of lanes that are arrays already.

    Attributes:
        rows: The lanes' numbers in their message.
        positions: Each session's after its steps.
        predictions: One for each.
        drift: By place in ``rows``, where its session's own chart took in a block of steps.
    """

    rows: Sequence[int]
    positions: Sequence[int]
    predictions: Predictions
    drift: Mapping[int, Drift]


class LaneSteps(NamedTuple):
    """A request read: the steps of each of ``lanes``."""

    lanes: list[int]
    steps: RowSteps
    options: StepOptions


@dataclass(frozen=True, slots=True)
class ColumnsResult:
    """Answers to one columnar message: lanes that worked, packed in the request's order, and the errors of the others.

    ``counts[i]`` entries of every array below belong to ``lanes[i]``: 1, or its steps where every step was asked for.

    Args:
        lanes: [lane]
        positions: [lane], each session's position after its steps
        counts: [lane]
        ids: [entry, top], most probable first; task next_token, else None
        probabilities: [entry, top], as ``ids``
        quantiles: which quantiles ``forecast`` holds; empty for other tasks
        forecast: [entry, horizon, quantile] in data units; task forecast, else None
        outputs: by name [entry, …]; task stream, else empty
        surprise: [entry], the mean over a lane's steps, or each; None where the model tells none
        drift: by lane, where its session's own chart took in a block
        errors: by lane
    """

    lanes: list[int]
    positions: list[int]
    counts: list[int]
    ids: NDArray[np.int64] | None
    probabilities: NDArray[np.float32] | None
    quantiles: tuple[float, ...]
    forecast: NDArray[np.float32] | None
    outputs: dict[str, Tensor]
    surprise: NDArray[np.float32] | None
    errors: dict[int, TidegateError]
    drift: dict[int, Drift] = field(default_factory=dict)


class AttachResult(NamedTuple):
    """Lanes that were given: ``positions[i]`` is that of lane ``first_lane + i``, 0 where ``errors`` names the lane."""

    first_lane: int
    positions: list[int]
    errors: dict[int, TidegateError]


def encode_columns(
    lanes: Sequence[int],
    *,
    tokens: Sequence[int] | None = None,
    values: FloatArray | None = None,
    lengths: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    inputs: Sequence[InputValue] = (),
    options: StepOptions,
) -> predictor_pb2.Columns:
    """Pack steps: ``tokens`` [step] or ``values`` [step, feature] of all lanes, one lane after the other; ``inputs``
    are settings that hold for all of them.
    """
    message = predictor_pb2.Columns(lanes=lanes, lengths=lengths or (), positions=positions or (), tokens=tokens or ())
    if values is not None:
        fill_values(message.values, values)
    fill_inputs(message.inputs, inputs)
    fill_ask(message, options)
    return message


def decode_columns(message: predictor_pb2.Columns) -> LaneSteps:
    """Read a request, the inverse of `encode_columns`.

    Raises:
        InvalidInputError: No lanes, a lane twice, a length of 0, or columns that do not fit each other.
    """
    lanes, lengths, positions = message.lanes[:], message.lengths[:], message.positions[:]
    if not lanes or len(set(lanes)) != len(lanes):
        raise InvalidInputError("lanes must be given, each once")
    _check_column("lengths", lengths, lanes)
    _check_column("positions", positions, lanes)
    source = _decode_source(message, lengths, len(lanes))
    return LaneSteps(lanes, RowSteps(source, lengths, positions), decode_options(message))


def fill_columns(
    message: predictor_pb2.ColumnsReply, lanes: Sequence[int], results: Sequence[StepResult | TidegateError]
) -> None:
    """Pack the answers of lanes whose sessions are of one model and were asked the same.

    An answer that does not fit into a message is an error of its lane, and of no other.
    """
    at_once(filling_columns(message, lanes, results))


def filling_columns(
    message: predictor_pb2.ColumnsReply, lanes: Sequence[int], results: Sequence[StepResult | TidegateError]
) -> Slices[None]:
    """`fill_columns` in slices."""
    try:
        yield from _filling_columns(message, lanes, results)
    except Exception:
        log.exception("the answers of %d lanes could not be packed together", len(lanes))
        message.Clear()
        packable = []
        for lane, result in zip(lanes, results, strict=True):
            packable.append(_packable(lane, result))
            yield
        yield from _filling_columns(message, lanes, packable)


def _packable(lane: int, result: StepResult | TidegateError) -> StepResult | TidegateError:
    """The lane's answer if it can be packed, else the error that it cannot."""
    try:
        at_once(_filling_columns(predictor_pb2.ColumnsReply(), [lane], [result]))
    except Exception as error:  # noqa: BLE001 - it is this lane's answer
        return conceal(error, "a lane's answer does not fit into a message")
    return result


def _filling_columns(
    message: predictor_pb2.ColumnsReply, lanes: Sequence[int], results: Sequence[StepResult | TidegateError]
) -> Slices[None]:
    predictions: list[Prediction] = []
    for start in range(0, len(lanes), _LANES_AT_ONCE):
        some = slice(start, start + _LANES_AT_ONCE)
        predictions += _fill_lanes(message, lanes[some], results[some])
        yield
    if predictions:
        yield from _filling_predictions(message, predictions)


def _fill_lanes(
    message: predictor_pb2.ColumnsReply, lanes: Sequence[int], results: Sequence[StepResult | TidegateError]
) -> list[Prediction]:
    """Pack which lanes worked, which did not, and their charts; return what those that worked predict."""
    done, positions, predictions, errors = [], [], [], []
    for lane, result in zip(lanes, results, strict=True):
        if isinstance(result, TidegateError):
            errors.append((lane, result))
        else:
            done.append(lane)
            positions.append(result[1])
            predictions.append(result[2])
    fill_lane_errors(message, errors)
    message.lanes.extend(done)
    message.positions.extend(positions)
    for lane, prediction in zip(done, predictions, strict=True):
        if prediction.drift is not None:
            fill_drift(message.drift.add(lane=lane).drift, prediction.drift)
    return predictions


def filling_blocks(
    message: predictor_pb2.ColumnsReply,
    lanes: Sequence[int],
    blocks: Sequence[ReplyBlock],
    errors: Sequence[tuple[int, TidegateError]],
) -> Slices[None]:
    """Pack answers that are arrays already, of ``lanes`` by row; the other rows' ``errors`` are by lane."""
    fill_lane_errors(message, errors)
    positions = [position for block in blocks for position in block.positions]
    rows = [row for block in blocks for row in block.rows]
    parts = [block.predictions for block in blocks]
    order = None
    if len(blocks) > 1 and any(row >= after for row, after in pairwise(rows)):
        order = np.argsort(rows)
        positions = [positions[place] for place in order]
        rows.sort()
    message.lanes.extend(lanes if len(rows) == len(lanes) else [lanes[row] for row in rows])
    message.positions.extend(positions)
    message.counts.extend([1] * len(rows))
    message.quantiles.extend(parts[0].quantiles)
    yield
    for column, arrays in (
        (message.ids, [part.ids for part in parts]),
        (message.probabilities, [part.probabilities for part in parts]),
        (message.forecast, [part.forecast for part in parts]),
        (message.surprise, [part.surprise for part in parts]),
    ):
        if arrays[0] is not None:
            for array in _ordered(arrays, order):
                column.extend(array.ravel().tolist())
                yield
    if (names := parts[0].outputs) is not None:
        fill_tensors(
            message.outputs,
            {name: np.concatenate(_ordered([(part.outputs or {})[name] for part in parts], order)) for name in names},
        )
    drift = [(lanes[block.rows[place]], drift) for block in blocks for place, drift in block.drift.items()]
    for lane, each in drift:
        fill_drift(message.drift.add(lane=lane).drift, each)


def _ordered(arrays: Sequence[Any], order: Any) -> Sequence[Any]:
    """Return the rows of arrays in order; as they are where ``order`` is None."""
    return arrays if order is None else [np.concatenate(arrays)[order]]


def decode_columns_reply(message: predictor_pb2.ColumnsReply) -> ColumnsResult:
    """The inverse of `fill_columns`."""
    counts = message.counts[:]
    num_entries = sum(counts)
    quantiles = tuple(message.quantiles)
    has_ids, has_forecast = bool(message.ids) and num_entries > 0, bool(message.forecast) and num_entries > 0
    return ColumnsResult(
        lanes=message.lanes[:],
        positions=message.positions[:],
        counts=counts,
        ids=np.array(message.ids, np.int64).reshape(num_entries, -1) if has_ids else None,
        probabilities=np.array(message.probabilities, np.float32).reshape(num_entries, -1) if has_ids else None,
        quantiles=quantiles,
        forecast=(
            np.array(message.forecast, np.float32).reshape(num_entries, -1, len(quantiles)) if has_forecast else None
        ),
        outputs=decode_tensors(message.outputs),
        surprise=np.array(message.surprise, np.float32) if message.surprise else None,
        errors=decode_lane_errors(message.errors),
        drift={each.lane: decode_drift(each.drift) for each in message.drift},
    )


def fill_lane_errors(
    message: predictor_pb2.Attached | predictor_pb2.ColumnsReply, errors: Iterable[tuple[int, TidegateError]]
) -> None:
    """Tell the errors of lanes; of a great many, those behind the first by code and reason only."""
    for lane, error in errors:
        each = message.errors.add()
        each.lane = lane
        if len(message.errors) <= _TOLD_WHOLE:
            fill_error(each.error, error)
        else:
            each.error.code, each.error.reason = error.code, error.reason


def fit_lane_errors(message: predictor_pb2.Attached | predictor_pb2.ColumnsReply, max_bytes: int) -> None:
    """Make the reply small enough to be sent: where it is not, errors are told by their codes and reasons only.

    Raises:
        TooLargeError: It is too large all the same.
    """
    room = max_bytes - _ENVELOPE_BYTES
    if message.ByteSize() <= room:
        return
    for each in message.errors[:_TOLD_WHOLE]:
        each.error.ClearField("message")
        each.error.ClearField("details")
    if message.ByteSize() > room:
        raise TooLargeError(
            f"the reply would be over {max_bytes} bytes: send fewer lanes in a message", reason="REPLY_TOO_LARGE"
        )


def decode_lane_errors(messages: Iterable[predictor_pb2.LaneError]) -> dict[int, TidegateError]:
    return {each.lane: decode_error(each.error) for each in messages}


def decode_attached(message: predictor_pb2.Attached) -> AttachResult:
    return AttachResult(message.first_lane, message.positions[:], decode_lane_errors(message.errors))


def _check_column(name: str, column: list[int], lanes: list[int]) -> None:
    if column and len(column) != len(lanes):
        raise InvalidInputError(f"{len(column)} {name} for {len(lanes)} lanes")


def _decode_source(message: predictor_pb2.Columns, lengths: list[int], num_lanes: int) -> Input:
    if 0 in lengths:
        raise InvalidInputError(f"the length of lane {message.lanes[lengths.index(0)]} is 0")
    tokens = message.tokens[:]
    if bool(tokens) == message.HasField("values"):
        raise InvalidInputError("exactly one of tokens and values must be set and not be empty")
    values = None if tokens else decode_values(message.values)
    num_steps = len(tokens) if values is None else len(values)
    num_wanted = sum(lengths) if lengths else num_lanes
    check_steps(num_wanted)
    if num_steps != num_wanted:
        raise InvalidInputError(f"{num_steps} steps for lengths that sum to {num_wanted}")
    return Input(None, tokens if values is None else None, values, decode_inputs(message.inputs))


def _filling_predictions(message: predictor_pb2.ColumnsReply, predictions: list[Prediction]) -> Slices[None]:
    first = predictions[0]
    if first.every_step:
        message.counts.extend([prediction.length for prediction in predictions])
    else:
        message.counts.extend([1] * len(predictions))
    if first.next is not None:
        yield from _filling_candidates(message, predictions)
    if first.forecast is not None:
        yield from _filling_forecasts(message, predictions)
    if first.outputs is not None:
        fill_tensors(message.outputs, _stack_outputs(predictions))
        yield
    if first.surprise is not None:
        yield from _filling_surprise(message, predictions)


def _filling_candidates(message: predictor_pb2.ColumnsReply, predictions: list[Prediction]) -> Slices[None]:
    gathered: list[Candidate] = []
    for prediction in predictions:
        for row in prediction.next or ():
            gathered.extend(row)
            if len(gathered) >= _NUMBERS_AT_ONCE:
                _fill_candidates(message, gathered)
                gathered = []
                yield
    _fill_candidates(message, gathered)


def _fill_candidates(message: predictor_pb2.ColumnsReply, candidates: list[Candidate]) -> None:
    message.ids.extend([candidate[1] for candidate in candidates])
    message.probabilities.extend([candidate[2] for candidate in candidates])


def _filling_forecasts(message: predictor_pb2.ColumnsReply, predictions: list[Prediction]) -> Slices[None]:
    num_filled = 0
    for prediction in predictions:
        for row in prediction.forecast or ():
            if not message.quantiles:
                message.quantiles.extend(row.quantiles)
            for values in row.values:
                message.forecast.extend(values)
                num_filled += len(values)
            if num_filled >= _NUMBERS_AT_ONCE:
                num_filled = 0
                yield


def _stack_outputs(predictions: list[Prediction]) -> dict[str, Tensor]:
    names = predictions[0].outputs or {}
    return {name: np.concatenate([each.outputs[name] for each in predictions if each.outputs]) for name in names}


def _filling_surprise(message: predictor_pb2.ColumnsReply, predictions: list[Prediction]) -> Slices[None]:
    surprises = [prediction.surprise for prediction in predictions if prediction.surprise is not None]
    yield
    if not predictions[0].every_step:
        message.surprise.extend([surprise[0] for surprise in surprises])
        return
    num_filled = 0
    for surprise in surprises:
        message.surprise.extend(surprise.steps or ())
        num_filled += len(surprise.steps or ())
        if num_filled >= _NUMBERS_AT_ONCE:
            num_filled = 0
            yield
