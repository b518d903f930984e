"""Builds request messages from what callers give, without I/O: the asyncio and the blocking client share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tidegate.api import FloatArray, Input, InputValue, RestoreRequest, Sampling, SessionRequest, StepOptions
from tidegate.client.arguments import ARGUMENT_ERRORS, argument_error, as_list, build
from tidegate.errors import InvalidInputError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import encode_columns
from tidegate.wire.inputs import AskMessage, GenerateMessage, InputMessage, fill_ask, fill_input, fill_sampling
from tidegate.wire.sessions import encode_fork_request, encode_restore_request, encode_session_request

Given = str | Sequence[int] | Sequence[Sequence[float]] | NDArray[Any] | Input
"""A sequence: a text, tokens [step], or values [step, feature] in data units."""

InputValues = Mapping[str, ArrayLike]
"""Values of the model's settings by name: numbers, or arrays of numbers."""

Integers = Sequence[int] | NDArray[np.integer[Any]]


class SamplingOptions(TypedDict, total=False):
    """How to generate: see `tidegate.api.Sampling`."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | Sequence[str]


class SessionOptions(TypedDict, total=False):
    """How to open a session: see `tidegate.api.SessionRequest`."""

    version: str | None
    durable: bool
    ttl_seconds: float | None
    idle_seconds: float | None
    id: str | None
    seed: int | None
    drift: bool
    inputs: InputValues | None


class RestoreOptions(TypedDict, total=False):
    """How to open a session from a snapshot: see `tidegate.api.RestoreRequest`."""

    id: str | None
    durable: bool
    ttl_seconds: float | None
    idle_seconds: float | None
    drift: bool | None


def as_input(given: Given) -> Input:
    """Tell text, tokens and values apart by type and shape.

    Raises:
        InvalidInputError: It is none of the three.
    """
    if isinstance(given, Input):
        return given
    if isinstance(given, str):
        return Input(text=given)
    try:
        array = np.asarray(given)
    except ValueError:
        raise InvalidInputError("rows of values must have one width") from None
    if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
        return Input(tokens=array.tolist())
    if array.ndim == 2 and array.dtype.kind in "iuf":
        return Input(values=_rows(array))
    raise InvalidInputError("an input is a text, tokens [step], or values [step, feature]")


def as_sequences(given: Input | Iterable[Given]) -> list[Given]:
    """Tell one sequence from several.

    One is a text, an `Input`, whole numbers (tokens), or rows of which one has a fraction, or an array of floats
    (values). Anything else that can be iterated is several.

    Raises:
        InvalidInputError: It is neither.
    """
    if isinstance(given, np.ndarray):
        is_one = given.ndim < 2 or (given.ndim == 2 and given.dtype.kind == "f")
        return [given] if is_one else list(given)
    listed = as_list("sequences", given, (str, Input))
    first = listed[0] if listed else None
    is_token = isinstance(first, int | np.integer)
    is_row = isinstance(first, list | tuple) and any(isinstance(number, float | np.floating) for number in first)
    return [listed] if is_token or is_row else listed


def one_input(
    text: str | None, tokens: Integers | None, values: ArrayLike | None, inputs: InputValues | None = None
) -> Input:
    """Return the input of a step. The server checks that exactly one of the first three is given."""
    return Input(
        text,
        None if tokens is None else integers(tokens),
        None if values is None else _rows(values),
        input_values(inputs),
    )


def input_values(given: InputValues | None) -> tuple[InputValue, ...]:
    """Return values of settings as an `Input` has them.

    Raises:
        InvalidInputError: One is no number and no array of numbers.
    """
    if not given:
        return ()
    try:
        return tuple([InputValue.of(str(name), value) for name, value in sorted(given.items())])
    except (AttributeError, *ARGUMENT_ERRORS):  # the first, of what is no mapping
        raise argument_error(inputs=given) from None


def _rows(values: ArrayLike) -> FloatArray:
    try:
        with np.errstate(over="ignore"):  # to infinity, which the server refuses
            return np.asarray(values, np.float32)
    except ARGUMENT_ERRORS:
        raise argument_error(values=values) from None


def num_steps(given: Input) -> int:
    """Return the number of steps of a well-formed input: a character is one step, as are a token and a row."""
    steps = given.text if given.text is not None else given.tokens if given.tokens is not None else given.values
    return 0 if steps is None or (isinstance(steps, np.ndarray) and not steps.ndim) else len(steps)


def integers(numbers: Integers) -> Sequence[int]:
    """Return numbers as protobuf takes them fastest: a list."""
    if isinstance(numbers, np.ndarray):
        listed: list[int] = numbers.tolist()
        return listed
    return numbers


def predict_request(
    model: str,
    version: str | None,
    sequences: Input | Iterable[Given],
    options: StepOptions,
    inputs: InputValues | None = None,
) -> predictor_pb2.PredictRequest:
    """``inputs`` hold for the sequences that have none of their own."""
    for_all = input_values(inputs)
    message = build(predictor_pb2.PredictRequest, model=model, version=version or "")
    for index, sequence in enumerate(as_sequences(sequences)):
        try:
            _fill_input(message.sequences.add(), _with_inputs(as_input(sequence), for_all))
        except InvalidInputError as error:
            details = {"sequence": str(index)}
            raise InvalidInputError(f"sequence {index}: {error.message}", details=details) from None
    _fill_ask(message, options)
    return message


def _with_inputs(given: Input, for_all: tuple[InputValue, ...]) -> Input:
    return given if given.inputs else given._replace(inputs=for_all)


def sampling_of(options: SamplingOptions) -> Sampling:
    sampling = Sampling(**options)  # type: ignore[arg-type]  # what may be one stop string becomes several below
    return replace(sampling, stop=tuple(as_list("stop", sampling.stop)))


def generate_request(
    model: str, version: str | None, prompt: Given | None, sampling: Sampling, inputs: InputValues | None = None
) -> predictor_pb2.GenerateRequest:
    message = build(predictor_pb2.GenerateRequest, model=model, version=version or "")
    _fill_generation(message, prompt, sampling, inputs)
    return message


def session_generate_request(
    session: str,
    position: int | None,
    prompt: Given | None,
    sampling: Sampling,
    inputs: InputValues | None = None,
) -> sessions_pb2.SessionGenerateRequest:
    message = build(sessions_pb2.SessionGenerateRequest, session=session, position=position)
    _fill_generation(message, prompt, sampling, inputs)
    return message


def step_request(session: str, position: int | None, given: Input, options: StepOptions) -> sessions_pb2.StepRequest:
    message = build(sessions_pb2.StepRequest, session=session, position=position)
    _fill_input(message, given)
    _fill_ask(message, options)
    return message


def open_request(model: str, options: SessionOptions) -> sessions_pb2.OpenRequest:
    _check_lifetimes(options)
    try:
        inputs = input_values(options.get("inputs"))
        rest = {name: value for name, value in options.items() if name != "inputs"}
        return encode_session_request(SessionRequest(model, **rest, inputs=inputs))  # type: ignore[arg-type]
    except InvalidInputError:
        raise
    except ARGUMENT_ERRORS:
        raise argument_error(model=model, **options) from None


def restore_request(snapshot: bytes, options: RestoreOptions) -> sessions_pb2.RestoreRequest:
    _check_lifetimes(options)
    try:
        return encode_restore_request(snapshot, RestoreRequest(**options))
    except ARGUMENT_ERRORS:
        raise argument_error(snapshot=snapshot, **options) from None


def fork_request(session: str, ids: str | Sequence[str] | None, count: int | None) -> sessions_pb2.ForkRequest:
    listed = None if ids is None else as_list("ids", ids)
    if listed == [] or count == 0:
        raise InvalidInputError("a fork makes one session at least: leave out ids and count for one")
    try:
        return encode_fork_request(session, listed, count)
    except ARGUMENT_ERRORS:
        raise argument_error(ids=listed, count=count) from None


def columns_request(
    lanes: Integers,
    *,
    tokens: Integers | None,
    values: ArrayLike | None,
    lengths: Integers | None,
    positions: Integers | None,
    options: StepOptions,
    inputs: InputValues | None = None,
) -> predictor_pb2.StreamRequest:
    given = input_values(inputs)
    try:
        columns = encode_columns(
            integers(lanes),
            tokens=None if tokens is None else integers(tokens),
            values=None if values is None else _rows(values),
            lengths=None if lengths is None else integers(lengths),
            positions=None if positions is None else integers(positions),
            inputs=given,
            options=options,
        )
    except ARGUMENT_ERRORS:
        top, every_step, _ = options
        raise argument_error(
            lanes=lanes, tokens=tokens, lengths=lengths, positions=positions, top=top, every_step=every_step
        ) from None
    return predictor_pb2.StreamRequest(columns=columns)


class HasId(Protocol):
    """A session's object."""

    @property
    def id(self) -> str: ...


def session_ids(sessions: str | HasId | Iterable[str | HasId]) -> list[str]:
    """Return the ids of sessions, or of one."""
    listed: list[Any] = [sessions] if hasattr(sessions, "id") else as_list("sessions", sessions)
    try:
        return [each if isinstance(each, str) else each.id for each in listed]
    except AttributeError:
        raise argument_error(sessions=sessions) from None


def attach_request(first_lane: int, sessions: Sequence[str]) -> predictor_pb2.StreamRequest:
    attach = build(predictor_pb2.Attach, first_lane=first_lane, sessions=sessions)
    return predictor_pb2.StreamRequest(attach=attach)


def _fill_input(message: InputMessage | GenerateMessage, given: Input) -> None:
    try:
        fill_input(message, given)
    except ARGUMENT_ERRORS:
        raise argument_error(text=given.text, tokens=given.tokens, values=given.values) from None


def _fill_ask(message: AskMessage, options: StepOptions) -> None:
    try:
        fill_ask(message, options)
    except ARGUMENT_ERRORS:
        raise argument_error(top=options.top, every_step=options.every_step) from None


def _fill_generation(
    message: GenerateMessage, prompt: Given | None, sampling: Sampling, inputs: InputValues | None
) -> None:
    if prompt is not None or inputs:
        _fill_input(message, _with_inputs(Input() if prompt is None else as_input(prompt), input_values(inputs)))
    try:
        fill_sampling(message, sampling)
    except ARGUMENT_ERRORS:
        raise argument_error(**asdict(sampling)) from None


def _check_lifetimes(options: SessionOptions | RestoreOptions) -> None:
    """Messages have 0 where no lifetime is given."""
    if 0 in (options.get("ttl_seconds"), options.get("idle_seconds")):
        raise InvalidInputError("ttl_seconds and idle_seconds must be greater than 0; None is the server's default")
