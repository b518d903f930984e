"""What a caller asks, as messages: inputs, candidates a step, sampling.

Whether an input fits a model is the codec's business; here only its form is checked.
"""

from __future__ import annotations

import numpy as np

from tidegate.api import FloatArray, Input, Sampling, StepOptions
from tidegate.errors import InvalidInputError
from tidegate.v1 import predictor_pb2, sessions_pb2, types_pb2
from tidegate.wire.settings import decode_inputs, fill_inputs

InputMessage = types_pb2.Input | sessions_pb2.StepRequest
AskMessage = sessions_pb2.StepRequest | predictor_pb2.PredictRequest | predictor_pb2.Columns
GenerateMessage = predictor_pb2.GenerateRequest | sessions_pb2.SessionGenerateRequest

_DEFAULT = Sampling()
# Sessions remember what was asked last: nearly all of them this, which need not stand in memory for each.
_PLAIN = StepOptions()


def fill_input(message: InputMessage | GenerateMessage, value: Input) -> None:
    """Set the one of text, tokens and values that the input has."""
    if value.inputs:
        fill_inputs(message.inputs, value.inputs)
    if value.text is not None:
        message.text = value.text
    if value.tokens is not None:
        message.tokens.extend(value.tokens)
    if value.values is not None:
        if isinstance(message, predictor_pb2.GenerateRequest | sessions_pb2.SessionGenerateRequest):
            raise InvalidInputError("a prompt is text or tokens, not values")
        fill_values(message.values, value.values)


def decode_input(message: InputMessage) -> Input:
    """The inverse of `fill_input`.

    Raises:
        InvalidInputError: None or several of text, tokens and values are set, or values are not rows of their width.
    """
    inputs = decode_inputs(message.inputs) if message.inputs else ()
    # A step's text, the commonest, is told by the fewest questions.
    if message.HasField("text"):
        if not (message.tokens or message.HasField("values")):
            return Input(message.text, None, None, inputs)
    elif message.HasField("values"):
        if not message.tokens:
            return Input(None, None, decode_values(message.values), inputs)
    elif message.tokens:
        return Input(None, message.tokens[:], None, inputs)
    else:
        raise InvalidInputError("the input is empty: set one of text, tokens and values", reason="EMPTY_SEQUENCE")
    raise InvalidInputError("only one of text, tokens and values may be set")


def decode_prompt(message: GenerateMessage) -> Input | None:
    """The prompt of a generation, or the settings alone that hold for it; None where there is neither."""
    tokens, inputs = message.tokens[:], decode_inputs(message.inputs)
    if not message.HasField("text"):
        return Input(None, tokens or None, None, inputs) if tokens or inputs else None
    if tokens:
        raise InvalidInputError("a prompt is text or tokens, not both")
    return Input(message.text, None, None, inputs)


def fill_values(message: types_pb2.Values, values: FloatArray) -> None:
    """Pack ``values`` [steps, features]; they travel as 32-bit floats."""
    if values.ndim != 2:
        raise InvalidInputError(f"values must have the shape [steps, features], got {list(values.shape)}")
    message.width = values.shape[1]
    message.data.extend(values.ravel().tolist())


def decode_values(message: types_pb2.Values) -> FloatArray:
    """The inverse of `fill_values`: [steps, features] as float32."""
    width = message.width
    # protobuf hands repeated numbers to numpy in one copy.
    data = np.array(message.data, np.float32)
    if not width or data.size % width:
        raise InvalidInputError(f"{data.size} values are not rows of width {width}")
    return data.reshape(-1, width)


def fill_ask(message: AskMessage, options: StepOptions) -> None:
    message.top, message.every_step, _ = options


def decode_options(message: AskMessage) -> StepOptions:
    """The inverse of `fill_ask`; an absent ``top`` is 1."""
    if message.every_step or message.HasField("top"):
        return StepOptions(message.top if message.HasField("top") else 1, message.every_step)
    return _PLAIN


def fill_sampling(message: GenerateMessage, sampling: Sampling) -> None:
    message.max_tokens = sampling.max_tokens
    message.temperature = sampling.temperature
    message.top_k = sampling.top_k
    message.top_p = sampling.top_p
    if sampling.seed is not None:
        message.seed = sampling.seed
    message.stop.extend(sampling.stop)


def decode_sampling(message: GenerateMessage) -> Sampling:
    """The inverse of `fill_sampling`; what is absent has the default of `Sampling`."""
    return Sampling(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else _DEFAULT.max_tokens,
        temperature=message.temperature if message.HasField("temperature") else _DEFAULT.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else _DEFAULT.top_p,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
    )
