"""What callers give, as messages: the part of the client that sync and async share and that does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tidegate.core import Ask, Input, Sampling
from tidegate.errors import InvalidInputError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire import SESSION_KEY
from tidegate.wire.columns import encode_columns
from tidegate.wire.inputs import fill_ask, fill_input, fill_sampling

Given = str | Sequence[int] | Sequence[Sequence[float]] | NDArray[Any] | Input
"""A sequence: a text, tokens [step], or values [step, feature] in data units."""

Integers = Sequence[int] | NDArray[np.integer[Any]]

KNOCK = "/grpc.health.v1.Health/Check"
"""A method that any server or proxy answers at once, if only by refusing it."""

# Options of gRPC's core (grpc/impl/channel_arg_names.h).
OPTIONS = (
    # A message that is over the server's limit is refused by the server; what it answers is within its limits.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that is gone without a word, or stands still, is noticed in half a minute. Servers take a ping in 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # One that comes back is found in a second; gRPC's own two minutes are made for more clients than these.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


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
        return Input(values=array.astype(np.float32))
    raise InvalidInputError("an input is a text, tokens [step], or values [step, feature]")


def one_input(text: str | None, tokens: Integers | None, values: ArrayLike | None) -> Input:
    """The input of a step; that exactly one is given is for the server to say."""
    return Input(
        text,
        None if tokens is None else integers(tokens),
        None if values is None else np.asarray(values, np.float32),
    )


def num_steps(given: Input) -> int:
    """How many steps an input has, where it has the right form: a character is one, as are a token and a row."""
    steps = given.text if given.text is not None else given.tokens if given.tokens is not None else given.values
    return 0 if steps is None or (isinstance(steps, np.ndarray) and not steps.ndim) else len(steps)


def integers(numbers: Integers) -> Sequence[int]:
    """Numbers as protobuf takes them quickly."""
    if isinstance(numbers, np.ndarray):
        listed: list[int] = numbers.tolist()
        return listed
    return numbers


def metadata(session: str) -> tuple[tuple[str, str], ...]:
    """What a proxy routes a call by; nothing where no session is named."""
    return ((SESSION_KEY, session),) if session else ()


def predict_request(
    model: str, version: str | None, sequences: Iterable[Given], ask: Ask
) -> predictor_pb2.PredictRequest:
    message = predictor_pb2.PredictRequest(model=model, version=version or "")
    for sequence in sequences:
        fill_input(message.sequences.add(), as_input(sequence))
    fill_ask(message, ask)
    return message


def generate_request(
    model: str, version: str | None, prompt: Given | None, sampling: Sampling
) -> predictor_pb2.GenerateRequest:
    message = predictor_pb2.GenerateRequest(model=model, version=version or "")
    if prompt is not None:
        fill_input(message, as_input(prompt))
    fill_sampling(message, sampling)
    return message


def session_generate_request(
    session: str, position: int | None, prompt: Given | None, sampling: Sampling
) -> sessions_pb2.SessionGenerateRequest:
    message = sessions_pb2.SessionGenerateRequest(session=session, position=position)
    if prompt is not None:
        fill_input(message, as_input(prompt))
    fill_sampling(message, sampling)
    return message


def step_request(session: str, position: int | None, given: Input, ask: Ask) -> sessions_pb2.StepRequest:
    message = sessions_pb2.StepRequest(session=session, position=position)
    fill_input(message, given)
    fill_ask(message, ask)
    return message


def columns_request(
    lanes: Integers,
    *,
    tokens: Integers | None,
    values: ArrayLike | None,
    lengths: Integers | None,
    positions: Integers | None,
    ask: Ask,
) -> predictor_pb2.StreamRequest:
    columns = encode_columns(
        integers(lanes),
        tokens=None if tokens is None else integers(tokens),
        values=None if values is None else np.asarray(values, np.float32),
        lengths=None if lengths is None else integers(lengths),
        positions=None if positions is None else integers(positions),
        ask=ask,
    )
    return predictor_pb2.StreamRequest(columns=columns)


def attach_request(first_lane: int, sessions: Iterable[str]) -> predictor_pb2.StreamRequest:
    return predictor_pb2.StreamRequest(attach=predictor_pb2.Attach(first_lane=first_lane, sessions=sessions))


def require_none_in_flight(number: int) -> None:
    """Replies come in order, so only who has received all others can await its own."""
    if number:
        raise RuntimeError(f"{number} replies are in flight: receive them first")


def require_in_flight(number: int) -> None:
    """Who has sent nothing would wait for ever."""
    if not number:
        raise RuntimeError("no reply is in flight: send first")


def require_open(*, is_closed: bool) -> None:
    """A stream that its user has closed is not opened again."""
    if is_closed:
        raise RuntimeError("the stream is closed")
