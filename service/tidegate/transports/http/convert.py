"""JSON to the core's types and back: what a body means, and what an answer looks like.

Pure functions over parsed JSON. Whether an input fits a model is the core's to say; here it is made sure that it is one
at all, and an error says where it is not.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tidegate.api import (
    LAST_POSITION,
    Candidate,
    FloatArray,
    Forecast,
    GeneratedToken,
    GenerationDone,
    Input,
    InputValue,
    Prediction,
    PredictResult,
    StepOptions,
    StepResult,
    Surprise,
    Tensor,
    check_inputs,
    check_sequences,
    check_steps,
)
from tidegate.errors import InvalidInputError, known_names, shown
from tidegate.transports.http.large_json import Pieces

Json = Any
Object = dict[str, Json]

INPUTS = ("text", "tokens", "values")
SETTINGS = "inputs"
INPUT_KEYS = frozenset(INPUTS) | {SETTINGS}
ASK_KEYS = frozenset({"top", "every_step"})
STEP_KEYS = INPUT_KEYS | ASK_KEYS | {"position"}
PREDICT_KEYS = ASK_KEYS | {"sequences", "version"}

NUMBER_TYPES = frozenset({int, float})
TOKEN_TYPES = frozenset({int})
DEFAULT_ASK = StepOptions()
_MOST_CANDIDATES = 2**32 - 1


def parse_step(body: Object) -> tuple[Input, StepOptions, int | None]:
    """A ``:step`` body: the input, what is asked, and the session's position where it is given."""
    _only(body, STEP_KEYS)
    return parse_input(body), _parse_ask(body), parse_whole(body, "position", LAST_POSITION)


def parse_predict(body: Object) -> tuple[list[Input], StepOptions, str | None]:
    """A ``:predict`` body: the sequences, what is asked, and the version where it is given."""
    _only(body, PREDICT_KEYS)
    sequences = body.get("sequences")
    if type(sequences) is not list:
        raise InvalidInputError("sequences: must be a list of inputs")
    version = body.get("version")
    if version is not None and type(version) is not str:
        raise InvalidInputError("version: must be a string")
    check_sequences(len(sequences))
    inputs = [_parse_sequence(sequence, index) for index, sequence in enumerate(sequences)]
    return inputs, _parse_ask(body), version


def parse_input(body: Object, path: str = "") -> Input:
    """The one input among the keys of ``body``; ``path`` leads an error's location, like ``sequences[3].``."""
    text, tokens, values = body.get("text"), body.get("tokens"), body.get("values")
    if (text is None) + (tokens is None) + (values is None) != len(INPUTS) - 1:
        found = " and ".join(key for key in INPUTS if body.get(key) is not None) or "none"
        raise InvalidInputError(f"{path}exactly one of text, tokens and values must be given, got {found}")
    inputs = parse_settings(body, path) if SETTINGS in body else ()
    if tokens is not None:
        return Input(None, _parse_tokens(tokens, path + "tokens"), None, inputs)
    if text is not None:
        return Input(_parse_text(text, path + "text"), None, None, inputs)
    return Input(None, None, _parse_values(values, path + "values"), inputs)


def parse_optional_input(body: Object) -> Input | None:
    """The input among the keys of ``body``, or the settings alone; None where there is neither."""
    if any(body.get(key) is not None for key in INPUTS):
        return parse_input(body)
    inputs = parse_settings(body)
    return Input(inputs=inputs) if inputs else None


def parse_settings(body: Object, path: str = "") -> tuple[InputValue, ...]:
    """The values of the model's settings under ``inputs``, by rising name; none where it is absent or null."""
    given = body.get(SETTINGS)
    if given is None:
        return ()
    if type(given) is not dict:
        raise InvalidInputError(f'{path}inputs: must be an object, {{"name": value}}')
    check_inputs(len(given))
    return tuple([_parse_setting(name, given[name], f"{path}inputs") for name in sorted(given)])


def _parse_setting(name: str, value: Json, path: str) -> InputValue:
    try:
        return InputValue.of(name, _plain(value))
    except (ValueError, OverflowError):
        message = f"{path}: {shown(name)} must be a number, or lists of numbers of one length"
        raise InvalidInputError(message) from None


def _plain(value: Json) -> Json:
    """A value without the arrays that a large body is read into; ValueError where it is no number and no list."""
    if type(value) is Pieces:
        return np.concatenate([np.asarray(_plain(piece)) for piece in value])
    if type(value) is list:
        return list(map(_plain, value))
    if type(value) not in NUMBER_TYPES | {bool} and not isinstance(value, np.ndarray):
        raise ValueError
    return value


def parse_whole(body: Object, key: str, most: int) -> int | None:
    """The whole number of at most ``most`` under ``key``, None where it is absent or null."""
    value = body.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise InvalidInputError(f"{key}: must be a whole number of 0 to {most}")
    return value


def _only(body: Object, known: frozenset[str], path: str = "") -> None:
    for key in body:
        if key not in known:
            allowed = known_names(key, sorted(known), "the keys are")
            raise InvalidInputError(f"unknown key {shown(path + key)}{allowed}")


def _parse_ask(body: Object) -> StepOptions:
    top = parse_whole(body, "top", _MOST_CANDIDATES)
    every_step = body.get("every_step")
    if every_step is not None and type(every_step) is not bool:
        raise InvalidInputError("every_step: must be true or false")
    if top is None and not every_step:
        return DEFAULT_ASK
    return StepOptions(DEFAULT_ASK.top if top is None else top, bool(every_step))


def _parse_sequence(sequence: Json, index: int) -> Input:
    path = f"sequences[{index}]"
    try:
        if type(sequence) is not dict:
            raise InvalidInputError(f"{path}: must be an object")
        _only(sequence, INPUT_KEYS, f"{path}.")
        return parse_input(sequence, f"{path}.")
    except InvalidInputError as error:
        error.details["sequence"] = str(index)
        raise


def _parse_text(text: Json, path: str) -> str:
    if type(text) is not str:
        raise InvalidInputError(f"{path}: must be a string")
    return text


def without_input(body: Object) -> Object:
    """What a body holds besides its input."""
    return {key: value for key, value in body.items() if key not in INPUT_KEYS}


def without_settings(body: Object) -> Object:
    """What a body holds besides its settings."""
    return {key: value for key, value in body.items() if key != SETTINGS} if SETTINGS in body else body


def _parse_tokens(tokens: Json, path: str) -> Sequence[int]:
    if type(tokens) is Pieces:
        return _join_tokens(tokens, path)
    if type(tokens) is not list:
        raise InvalidInputError(f"{path}: must be a list of token ids")
    check_steps(len(tokens))
    _check_tokens(tokens, path)
    return tokens


def _check_tokens(tokens: list[Json], path: str, start: int = 0) -> None:
    if not TOKEN_TYPES.issuperset(map(type, tokens)):
        wrong = next(i for i, token in enumerate(tokens) if type(token) is not int)
        raise InvalidInputError(f"{path}[{start + wrong}]: must be a token id, a whole number")


def _join_tokens(pieces: Pieces, path: str) -> Sequence[int]:
    check_steps(pieces.num_entries)
    found, start = array("q"), 0
    for piece in pieces:
        if isinstance(piece, list) or piece.dtype != np.int64 or piece.ndim != 1:
            _check_tokens(list(piece) if isinstance(piece, list) else piece.tolist(), path, start)
            raise InvalidInputError("tokens must be whole numbers", reason="TOKEN_OUT_OF_RANGE")  # beyond 64 bits
        found.frombytes(piece.tobytes())
        start += len(piece)
    return found


def _parse_values(rows: Json, path: str) -> FloatArray:
    """[steps, features], float32 as over every transport, so that a repeat over another one is the same input."""
    if type(rows) is Pieces:
        return _join_rows(rows, path)
    if type(rows) is not list:
        raise InvalidInputError(f"{path}: must be a list of rows of numbers")
    check_steps(len(rows))
    return _single(_array_of(rows, path)) if rows else np.empty((0, 0), np.float32)


def _join_rows(pieces: Pieces, path: str) -> FloatArray:
    check_steps(pieces.num_entries)
    found: list[FloatArray] = []
    width, start = None, 0
    for piece in pieces:
        if isinstance(piece, np.ndarray) and piece.ndim == 2 and piece.dtype.kind in "if":
            _check_width(piece.shape[1], width, f"{path}[{start}]")
            found.append(_single(piece))
        else:
            found.append(_single(_array_of(list(piece), path, width, start)))
        width, start = found[0].shape[1], start + len(piece)
    return np.concatenate(found)


def _array_of(rows: list[Json], path: str, width: int | None = None, start: int = 0) -> Tensor:
    """Rows as an array of doubles, [rows, features]; the first is ``path``'s at ``start``."""
    for index, row in enumerate(rows, start):
        _check_row(row, f"{path}[{index}]")
        width = len(row) if width is None else width
        _check_width(len(row), width, f"{path}[{index}]")
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        raise InvalidInputError(f"{path}: holds a whole number beyond every float") from None


def _single(values: Tensor) -> FloatArray:
    with np.errstate(over="ignore"):  # to infinity, which the core refuses by its step and feature
        return values.astype(np.float32)


def _check_width(found: int, width: int | None, path: str) -> None:
    if width is not None and found != width:
        raise InvalidInputError(f"{path}: has {found} numbers where the first row has {width}")


def _check_row(row: Json, path: str) -> None:
    if isinstance(row, np.ndarray):
        if row.ndim == 1 and row.dtype.kind in "if":
            return
        row = row.tolist()
    if type(row) is not list:
        raise InvalidInputError(f"{path}: must be a list of numbers")
    if not NUMBER_TYPES.issuperset(map(type, row)):
        wrong = next(i for i, value in enumerate(row) if type(value) not in NUMBER_TYPES)
        raise InvalidInputError(f"{path}[{wrong}]: must be a number")


def step_json(result: StepResult) -> Object:
    return {
        "session": result.session,
        "position": result.position,
        "prediction": prediction_json(result.prediction),
    }


def predict_json(result: PredictResult) -> Object:
    """The reply, for `reply_in_slices`."""
    return {
        "model": result.model,
        "version": result.version,
        "predictions": map(prediction_json, result.predictions),
    }


def prediction_json(prediction: Prediction) -> Object:
    """What is told after the last step stands alone; with every step it is a list, one entry a step.

    A large prediction's lists are iterators and arrays, for `reply_in_slices`.
    """
    if prediction.is_large:
        return _large_prediction_json(prediction)
    steps = slice(None) if prediction.every_step else -1
    reply: Object = {"length": prediction.length}
    if prediction.next is not None:
        reply["next"] = [_candidates_json(step) for step in prediction.next][steps]
    if prediction.forecast is not None:
        reply["forecast"] = [_forecast_json(step) for step in prediction.forecast][steps]
    if prediction.outputs is not None:
        reply["outputs"] = {name: tensor[steps].tolist() for name, tensor in prediction.outputs.items()}
    if prediction.surprise is not None:
        reply["surprise"] = _surprise_json(prediction.surprise)
    if prediction.drift is not None:
        reply["drift"] = prediction.drift._asdict()
    return reply


def _large_prediction_json(prediction: Prediction) -> Object:
    reply: Object = {"length": prediction.length}
    if prediction.next is not None:
        reply["next"] = _told(prediction, map(_candidates_json, prediction.next))
    if prediction.forecast is not None:
        reply["forecast"] = _told(prediction, map(_forecast_json, prediction.forecast))
    if prediction.outputs is not None:
        reply["outputs"] = {
            name: tensor if prediction.every_step else tensor[-1] for name, tensor in prediction.outputs.items()
        }
    if prediction.surprise is not None:
        mean, unit, steps = prediction.surprise
        reply["surprise"] = {"mean": mean, "unit": unit} | ({} if steps is None else {"steps": iter(steps)})
    if prediction.drift is not None:
        reply["drift"] = prediction.drift._asdict()
    return reply


def _told(prediction: Prediction, entries: Iterator[Json]) -> Json:
    """The entries of all steps, or the only one."""
    return entries if prediction.every_step else next(entries)


def _candidates_json(candidates: Iterable[Candidate]) -> list[Object]:
    return [{"token": token, "id": number, "probability": probability} for token, number, probability in candidates]


def _forecast_json(forecast: Forecast) -> Object:
    return {"quantiles": forecast.quantiles, "values": forecast.values}


def _surprise_json(surprise: Surprise) -> Object:
    reply: Object = {"mean": surprise.mean, "unit": surprise.unit}
    if surprise.steps is not None:
        reply["steps"] = list(surprise.steps)
    return reply


def token_json(token: GeneratedToken) -> Object:
    return {"id": token.id, "text": token.text, "position": token.position}


def generation_json(done: GenerationDone) -> Object:
    return {
        "text": done.text,
        "tokens": done.tokens,
        "finish_reason": done.finish_reason,
        "position": done.position,
    }
