"""What a model says, as messages. They are filled in place: that costs half of building them from parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace

import numpy as np

from tidegate.api import (
    Candidate,
    Drift,
    Forecast,
    GeneratedToken,
    GenerationDone,
    Prediction,
    PredictResult,
    StepResult,
    Surprise,
    Tensor,
)
from tidegate.slices import Slices, at_once
from tidegate.v1 import predictor_pb2, sessions_pb2, types_pb2


def fill_step(message: sessions_pb2.StepReply, result: StepResult) -> None:
    message.session, message.position, prediction = result
    fill_prediction(message.prediction, prediction)


def decode_step(message: sessions_pb2.StepReply, *, every_step: bool) -> StepResult:
    """The inverse of `fill_step`; ``every_step`` as it was asked."""
    return StepResult(message.session, message.position, decode_prediction(message.prediction, every_step=every_step))


def filling_step(message: sessions_pb2.StepReply, result: StepResult) -> Slices[None]:
    """`fill_step` in slices, for a large prediction."""
    message.session, message.position, prediction = result
    yield from _filling_prediction(message.prediction, prediction)


def encode_predict(result: PredictResult) -> predictor_pb2.PredictReply:
    return at_once(encoding_predict(result))


def encoding_predict(result: PredictResult) -> Slices[predictor_pb2.PredictReply]:
    """`encode_predict` in slices."""
    message = predictor_pb2.PredictReply(model=result.model, version=result.version)
    for prediction in result.predictions:
        if prediction.is_large:
            yield from _filling_prediction(message.predictions.add(), prediction)
        else:
            fill_prediction(message.predictions.add(), prediction)
            yield
    return message


def decode_predict(message: predictor_pb2.PredictReply, *, every_step: bool) -> PredictResult:
    """The inverse of `encode_predict`."""
    predictions = [decode_prediction(each, every_step=every_step) for each in message.predictions]
    return PredictResult(message.model, message.version, predictions)


def fill_prediction(message: types_pb2.Prediction, prediction: Prediction) -> None:
    message.length = prediction.length
    if prediction.next is not None:
        for row in prediction.next:
            _fill_candidates(message.next.add(), row)
    if prediction.forecast is not None:
        for forecast in prediction.forecast:
            _fill_forecast(message.forecast.add(), forecast)
    if prediction.outputs is not None:
        fill_tensors(message.outputs, prediction.outputs)
    if prediction.surprise is not None:
        surprise = message.surprise
        surprise.mean, surprise.unit, steps = prediction.surprise
        if steps:
            surprise.steps.extend(steps)
    if prediction.drift is not None:
        fill_drift(message.drift, prediction.drift)


def _filling_prediction(message: types_pb2.Prediction, prediction: Prediction) -> Slices[None]:
    """`fill_prediction`, which yields after each step."""
    told = prediction.next, prediction.forecast
    fill_prediction(message, replace(prediction, next=None, forecast=None))
    yield
    for step in told[0] or ():
        _fill_candidates(message.next.add(), step)
        yield
    for forecast in told[1] or ():
        _fill_forecast(message.forecast.add(), forecast)
        yield


def decode_prediction(message: types_pb2.Prediction, *, every_step: bool) -> Prediction:
    """The inverse of `fill_prediction`."""
    return Prediction(
        length=message.length,
        every_step=every_step,
        next=[_decode_candidates(row) for row in message.next] or None,
        forecast=[_decode_forecast(row) for row in message.forecast] or None,
        outputs=decode_tensors(message.outputs) or None,
        surprise=_decode_surprise(message, every_step=every_step),
        drift=decode_drift(message.drift) if message.HasField("drift") else None,
    )


def fill_drift(message: types_pb2.Drift, drift: Drift) -> None:
    message.state, message.ewma, message.blocks = drift


def encode_drift(drift: Drift) -> types_pb2.Drift:
    return types_pb2.Drift(state=drift.state, ewma=drift.ewma, blocks=drift.blocks)


def decode_drift(message: types_pb2.Drift) -> Drift:
    """The inverse of `fill_drift` and `encode_drift`."""
    return Drift(message.state, message.ewma, message.blocks)


def fill_tensors(message: MutableMapping[str, types_pb2.Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        target = message[name]
        target.dtype = tensor.dtype.name
        target.shape.extend(tensor.shape)
        target.data = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def decode_tensors(message: Mapping[str, types_pb2.Tensor]) -> dict[str, Tensor]:
    """The inverse of `fill_tensors`. The arrays are read-only views of the message's bytes."""
    return {name: _decode_tensor(tensor) for name, tensor in message.items()}


def encode_event(event: GeneratedToken | GenerationDone) -> types_pb2.GenerateReply:
    message = types_pb2.GenerateReply()
    if isinstance(event, GeneratedToken):
        token = message.token
        token.id, token.text, token.position = event
    else:
        done = message.done
        done.text, done.finish_reason, done.position = event.text, event.finish_reason, event.position
        done.tokens.extend(event.tokens)
    return message


def decode_event(message: types_pb2.GenerateReply) -> GeneratedToken | GenerationDone:
    """The inverse of `encode_event`."""
    if message.HasField("token"):
        token = message.token
        return GeneratedToken(token.id, token.text, token.position)
    done = message.done
    return GenerationDone(done.text, done.tokens[:], done.finish_reason, done.position)


def _fill_candidates(message: types_pb2.Candidates, step: Iterable[Candidate]) -> None:
    candidates = message.candidates
    for token, identity, probability in step:
        candidates.add(token=token, id=identity, probability=probability)


def _fill_forecast(message: types_pb2.Forecast, forecast: Forecast) -> None:
    message.quantiles.extend(forecast.quantiles)
    for hour in forecast.values:
        message.values.add().values.extend(hour)


def _decode_candidates(message: types_pb2.Candidates) -> list[Candidate]:
    return [Candidate(each.token, each.id, each.probability) for each in message.candidates]


def _decode_forecast(message: types_pb2.Forecast) -> Forecast:
    return Forecast(tuple(message.quantiles), [row.values[:] for row in message.values])


def _decode_surprise(message: types_pb2.Prediction, *, every_step: bool) -> Surprise | None:
    if not message.HasField("surprise"):
        return None
    surprise = message.surprise
    return Surprise(surprise.mean, surprise.unit, surprise.steps[:] if every_step else None)


def _decode_tensor(message: types_pb2.Tensor) -> Tensor:
    dtype = np.dtype(message.dtype).newbyteorder("<")
    tensor: Tensor = np.frombuffer(message.data, dtype).reshape(message.shape)
    return tensor
