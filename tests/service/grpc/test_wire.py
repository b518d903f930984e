"""Conversions are inverse pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.service.fake_core import MODEL
from tidegate.api import (
    Candidate,
    CheckpointInfo,
    Drift,
    Forecast,
    GeneratedToken,
    GenerationDone,
    Input,
    InputValue,
    ModelPage,
    Prediction,
    PredictResult,
    Refusal,
    ReloadReport,
    RestoreRequest,
    Sampling,
    SessionInfo,
    SessionPage,
    SessionRequest,
    StepOptions,
    StepResult,
    Surprise,
    Tensor,
)
from tidegate.errors import InternalError, InvalidInputError, OverloadedError, TidegateError
from tidegate.v1 import predictor_pb2, sessions_pb2, types_pb2
from tidegate.wire.columns import (
    decode_columns,
    decode_columns_reply,
    encode_columns,
    fill_columns,
)
from tidegate.wire.inputs import (
    decode_input,
    decode_options,
    decode_prompt,
    decode_sampling,
    fill_ask,
    fill_input,
    fill_sampling,
)
from tidegate.wire.models import (
    decode_model_page,
    decode_reload,
    encode_model_page,
    encode_reload,
)
from tidegate.wire.predictions import (
    decode_event,
    decode_predict,
    decode_step,
    encode_event,
    encode_predict,
    fill_step,
)
from tidegate.wire.sessions import (
    decode_checkpoint,
    decode_fork_request,
    decode_forks,
    decode_restore_request,
    decode_session_page,
    decode_session_request,
    encode_checkpoint,
    encode_fork_request,
    encode_forks,
    encode_restore_request,
    encode_session_page,
    encode_session_request,
)

floats = st.floats(width=32, allow_nan=False)
int64s = st.integers(-(2**63), 2**63 - 1)
uint32s = st.integers(0, 2**32 - 1)
positions = st.integers(0, 2**63)
rows = hnp.array_shapes(min_dims=2, max_dims=2, max_side=5)
float_rows = hnp.arrays(np.float32, rows, elements=floats)
token_lists = st.lists(int64s, min_size=1, max_size=5)
settings_given = st.dictionaries(
    st.text(max_size=3),
    st.floats(allow_nan=False) | hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=3), elements=floats),
    max_size=2,
).map(lambda found: tuple(InputValue.of(name, found[name]) for name in sorted(found)))
inputs = st.one_of(
    st.tuples(st.text(), settings_given).map(lambda it: Input(text=it[0], inputs=it[1])),
    st.tuples(token_lists, settings_given).map(lambda it: Input(tokens=it[0], inputs=it[1])),
    st.tuples(float_rows, settings_given).map(lambda it: Input(values=it[0], inputs=it[1])),
)
candidates = st.builds(Candidate, st.text(max_size=3), int64s, floats)
forecasts = st.builds(
    Forecast,
    st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple),
    st.lists(st.lists(floats, min_size=1, max_size=3), min_size=1, max_size=3),
)
dtypes = st.sampled_from(["float32", "float64", "int64", "int32", "uint8", "bool", "float16"])
tensors = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=3)))
drifts = st.builds(Drift, st.sampled_from(["normal", "warning", "drift"]), floats, positions)


@st.composite
def predictions(draw: st.DrawFn, *, every_step: bool) -> Prediction:
    surprise = st.builds(Surprise, floats, st.text(max_size=5), st.lists(floats) if every_step else st.none())
    return Prediction(
        length=draw(positions),
        every_step=every_step,
        next=draw(st.none() | st.lists(st.lists(candidates, max_size=3), min_size=1, max_size=3)),
        forecast=draw(st.none() | st.lists(forecasts, min_size=1, max_size=3)),
        outputs=draw(st.none() | st.dictionaries(st.text(max_size=3), tensors, min_size=1, max_size=2)),
        surprise=draw(st.none() | surprise),
        drift=draw(st.none() | drifts),
    )


def same_input(one: Input, other: Input) -> bool:
    if one.values is None or other.values is None:
        return one == other
    if one.inputs != other.inputs:
        return False
    return one.values.dtype == other.values.dtype and np.array_equal(one.values, other.values)


def same_tensors(one: dict[str, Tensor] | None, other: dict[str, Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def same_prediction(one: Prediction, other: Prediction) -> bool:
    plain = replace(one, outputs=None) == replace(other, outputs=None)
    return plain and same_tensors(one.outputs, other.outputs)


@given(inputs)
def test_inputs(value: Input) -> None:
    message = types_pb2.Input()
    fill_input(message, value)
    assert same_input(decode_input(message), value)


@given(
    st.none()
    | st.tuples(st.text(), settings_given).map(lambda it: Input(text=it[0], inputs=it[1]))
    | st.tuples(token_lists, settings_given).map(lambda it: Input(tokens=it[0], inputs=it[1]))
    | settings_given.filter(bool).map(lambda given: Input(inputs=given))
)
def test_prompts(value: Input | None) -> None:
    message = predictor_pb2.GenerateRequest()
    if value is not None:
        fill_input(message, value)
    assert decode_prompt(message) == value


@given(st.builds(StepOptions, uint32s, st.booleans(), st.just(False)))  # no message asks for raw outputs
def test_asks(options: StepOptions) -> None:
    message = sessions_pb2.StepRequest()
    fill_ask(message, options)
    assert decode_options(message) == options


def test_what_is_absent_has_the_core_s_defaults() -> None:
    assert decode_options(sessions_pb2.StepRequest()) == StepOptions()
    assert decode_sampling(predictor_pb2.GenerateRequest()) == Sampling()


@given(
    st.builds(
        Sampling,
        max_tokens=uint32s,
        temperature=floats,
        top_k=uint32s,
        top_p=floats,
        seed=st.none() | st.integers(0, 2**64 - 1),
        stop=st.lists(st.text()).map(tuple),
    )
)
def test_samplings(sampling: Sampling) -> None:
    message = sessions_pb2.SessionGenerateRequest()
    fill_sampling(message, sampling)
    assert decode_sampling(message) == sampling


@given(st.data(), st.booleans(), st.text(), positions)
def test_step_results(data: st.DataObject, every_step: bool, session: str, position: int) -> None:
    prediction = data.draw(predictions(every_step=every_step))
    message = sessions_pb2.StepReply()
    fill_step(message, StepResult(session, position, prediction))
    found = decode_step(message, every_step=every_step)
    assert (found.session, found.position) == (session, position)
    assert same_prediction(found.prediction, prediction)


@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(1, every_step=True, next=[[Candidate("a", number, 0.5) for number in range(84)]]),
        Prediction(1, every_step=True, forecast=[Forecast((0.1, 0.5, 0.9), [[1.0, 2.0, 3.0]] * 24)]),
    ],
)
def test_a_large_result_is_large_also_when_it_is_decoded(prediction: Prediction, steps: int) -> None:
    told = [*(prediction.next or ())] * steps, [*(prediction.forecast or ())] * steps
    message = sessions_pb2.StepReply()
    fill_step(message, StepResult("s", steps, replace(prediction, next=told[0] or None, forecast=told[1] or None)))
    assert decode_step(message, every_step=True).prediction.is_large is (steps == 100)


@given(st.lists(predictions(every_step=False), max_size=3))
def test_predict_results(several: list[Prediction]) -> None:
    found = decode_predict(encode_predict(PredictResult("m", "3", several)), every_step=False)
    assert (found.model, found.version) == ("m", "3")
    assert all(same_prediction(one, other) for one, other in zip(found.predictions, several, strict=True))


@given(
    st.builds(GeneratedToken, int64s, st.text(), positions)
    | st.builds(GenerationDone, st.text(), token_lists, st.sampled_from(["stop", "length"]), positions)
)
def test_events(event: GeneratedToken | GenerationDone) -> None:
    assert decode_event(encode_event(event)) == event


seconds = st.integers(1, 2**40).map(lambda micros: micros / 1e6)


@given(
    st.builds(
        SessionRequest,
        model=st.text(),
        version=st.none() | st.text(min_size=1),
        durable=st.booleans(),
        ttl_seconds=st.none() | seconds,
        idle_seconds=st.none() | seconds,
        id=st.none() | st.text(min_size=1),
        seed=st.none() | st.integers(0, 2**64 - 1),
        drift=st.booleans(),
        inputs=settings_given,
    )
)
def test_session_requests(request: SessionRequest) -> None:
    assert decode_session_request(encode_session_request(request)) == request


@given(
    st.lists(
        st.builds(
            SessionInfo,
            st.text(),
            st.text(),
            st.text(),
            positions,
            st.booleans(),
            seconds,
            st.none() | seconds,
            positions,
            st.lists(st.text(), max_size=8).map(tuple),
            st.text(),
            st.none() | drifts,
        ),
        max_size=3,
    ),
    st.text(),
)
def test_session_pages(sessions: list[SessionInfo], token: str) -> None:
    assert decode_session_page(encode_session_page(SessionPage(sessions, token))) == SessionPage(sessions, token)
    assert decode_forks(encode_forks(sessions)) == sessions


@given(st.text(), st.none() | st.lists(st.text(), min_size=1), st.integers(1, 2**32 - 1))
def test_fork_requests(session: str, ids: list[str] | None, count: int) -> None:
    message = encode_fork_request(session, ids, None if ids else count)
    assert message.session == session
    assert decode_fork_request(message) == (ids, None if ids else count)


@given(st.builds(CheckpointInfo, st.text(), positions))
def test_checkpoints(info: CheckpointInfo) -> None:
    assert decode_checkpoint(encode_checkpoint(info)) == info


@given(
    st.binary(),
    st.builds(
        RestoreRequest,
        id=st.none() | st.text(min_size=1),
        durable=st.booleans(),
        ttl_seconds=st.none() | seconds,
        idle_seconds=st.none() | seconds,
    ),
)
def test_restore_requests(snapshot: bytes, request: RestoreRequest) -> None:
    assert decode_restore_request(encode_restore_request(snapshot, request)) == (snapshot, request)


def test_model_pages() -> None:
    page = ModelPage([MODEL, replace(MODEL, batch_invariant=False, features=[])], "7")
    assert decode_model_page(encode_model_page(page)) == page


def test_reload_reports() -> None:
    report = ReloadReport(["a/1"], ["b/2", "b/3"], [Refusal("c/1", "CHECKSUM_MISMATCH", "altered")])
    assert decode_reload(encode_reload(report)) == report


@given(st.data())
def test_columns(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    lanes = data.draw(st.permutations(range(len(lengths))))
    width = data.draw(st.integers(1, 3))
    is_tokens = data.draw(st.booleans())
    tokens = data.draw(st.lists(int64s, min_size=sum(lengths), max_size=sum(lengths))) if is_tokens else None
    values = None if is_tokens else data.draw(hnp.arrays(np.float32, (sum(lengths), width), elements=floats))
    where = data.draw(st.none() | st.just([7] * len(lengths)))
    options = StepOptions(data.draw(st.integers(0, 3)), data.draw(st.booleans()))
    given = data.draw(settings_given)
    message = encode_columns(
        lanes, tokens=tokens, values=values, lengths=lengths, positions=where, inputs=given, options=options
    )
    read = decode_columns(message)
    assert (read.lanes, read.options) == (list(lanes), options)
    steps = read.steps
    assert steps.positions == (where or [])
    ends = np.cumsum(lengths)
    each = [steps.of(row, steps.starts()) for row in range(len(lengths))]
    some = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    for chosen in (some, range(min(some), max(some) + 1)):
        selected = steps.select(chosen)
        for place, row in enumerate(chosen):
            (mine, mine_at), (theirs, theirs_at) = selected.of(place, selected.starts()), each[row]
            assert same_input(mine, theirs)
            assert mine_at == theirs_at
    assert [position for _, position in each] == (where if where is not None else [None for _ in lanes])
    for (given_input, _), start, end in zip(each, ends - lengths, ends, strict=True):
        expected = Input(
            None, tokens[start:end] if tokens else None, None if values is None else values[start:end], given
        )
        assert same_input(given_input, expected)


def test_columns_without_lengths_are_one_step_each() -> None:
    steps = decode_columns(predictor_pb2.Columns(lanes=[3, 1], tokens=[10, 20])).steps
    assert [steps.of(row, steps.starts()) for row in range(2)] == [(Input(None, [10]), None), (Input(None, [20]), None)]


BAD_COLUMNS = {
    "no lanes": predictor_pb2.Columns(tokens=[1]),
    "a lane twice": predictor_pb2.Columns(lanes=[1, 1], tokens=[1, 2]),
    "a length of 0": predictor_pb2.Columns(lanes=[1, 2], lengths=[2, 0], tokens=[1, 2]),
    "too few steps": predictor_pb2.Columns(lanes=[1, 2], tokens=[1]),
    "too many steps": predictor_pb2.Columns(lanes=[1], tokens=[1, 2]),
    "lengths of other lanes": predictor_pb2.Columns(lanes=[1, 2], lengths=[2], tokens=[1, 2]),
    "positions of other lanes": predictor_pb2.Columns(lanes=[1], positions=[1, 2], tokens=[1]),
    "no input": predictor_pb2.Columns(lanes=[1]),
    "two inputs": predictor_pb2.Columns(lanes=[1], tokens=[1], values=types_pb2.Values(width=1, data=[1])),
    "rows of no width": predictor_pb2.Columns(lanes=[1], values=types_pb2.Values(data=[1])),
    "half a row": predictor_pb2.Columns(lanes=[1], values=types_pb2.Values(width=2, data=[1, 2, 3])),
}


@pytest.mark.parametrize("message", BAD_COLUMNS.values(), ids=BAD_COLUMNS.keys())
def test_columns_that_do_not_fit_are_refused(message: predictor_pb2.Columns) -> None:
    with pytest.raises(InvalidInputError):
        decode_columns(message)


@st.composite
def lane_results(draw: st.DrawFn) -> tuple[list[StepResult | TidegateError], bool]:
    """Answers of lanes whose sessions are of one model: the same columns, and the same widths."""
    every_step, top, horizon = draw(st.booleans()), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    task = draw(st.sampled_from(["next_token", "forecast", "stream"]))
    quantiles = (0.1, 0.9)
    results: list[StepResult | TidegateError] = []
    for number in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            results.append(OverloadedError("full", retry_after=1.0))
            continue
        length = draw(st.integers(1, 3))
        entries = length if every_step else 1
        each = st.lists(floats, min_size=2, max_size=2)
        prediction = Prediction(length, every_step)
        if task == "next_token":
            row = st.lists(candidates, min_size=top, max_size=top)
            prediction.next = draw(st.lists(row, min_size=entries, max_size=entries))
        elif task == "forecast":
            day = st.lists(each, min_size=horizon, max_size=horizon)
            prediction.forecast = [Forecast(quantiles, draw(day)) for _ in range(entries)]
        else:
            prediction.outputs = {"y": draw(hnp.arrays(np.float32, (entries, 2, 3), elements=floats))}
        told = draw(st.lists(floats, min_size=length, max_size=length))
        prediction.surprise = Surprise(draw(floats), "bits", told if every_step else None)
        prediction.drift = draw(st.none() | drifts)
        results.append(StepResult(f"s{number}", draw(positions), prediction))
    return results, every_step


@given(lane_results())
def test_columns_replies(case: tuple[list[StepResult | TidegateError], bool]) -> None:
    results, every_step = case
    message = predictor_pb2.ColumnsReply()
    fill_columns(message, range(len(results)), results)
    found = decode_columns_reply(message)
    done = {lane: result for lane, result in enumerate(results) if isinstance(result, StepResult)}
    assert found.lanes == list(done)
    assert {lane: type(error) for lane, error in found.errors.items()} == {
        lane: OverloadedError for lane in range(len(results)) if lane not in done
    }
    assert found.positions == [result.position for result in done.values()]
    assert found.drift == {lane: told for lane, result in done.items() if (told := result.prediction.drift)}
    entry = 0
    for result, count in zip(done.values(), found.counts, strict=True):
        prediction = result.prediction
        assert count == (prediction.length if every_step else 1)
        span = slice(entry, entry + count)
        entry += count
        if prediction.next is not None:
            assert found.ids is not None
            assert found.probabilities is not None
            assert found.ids[span].tolist() == [[each.id for each in row] for row in prediction.next]
            assert found.probabilities[span].tolist() == [[each.probability for each in row] for row in prediction.next]
        if prediction.forecast is not None:
            assert found.forecast is not None
            assert found.quantiles == prediction.forecast[0].quantiles
            assert found.forecast[span].tolist() == [row.values for row in prediction.forecast]
        if prediction.outputs is not None:
            assert np.array_equal(found.outputs["y"][span], prediction.outputs["y"])
        assert prediction.surprise is not None
        assert found.surprise is not None
        assert found.surprise[span].tolist() == (prediction.surprise.steps or [prediction.surprise.mean])


@pytest.mark.parametrize(
    "bad",
    [
        StepResult("s1", 2**64, Prediction(1, next=[[Candidate("a", 0, 0.5)]])),
        StepResult("s1", 1, Prediction(1, next=[[Candidate("a", 2**63, 0.5)]])),
    ],
)
def test_an_answer_that_no_message_holds_is_its_lanes_error(bad: StepResult) -> None:
    results = [StepResult(name, 1, Prediction(1, next=[[Candidate("a", 0, 0.5)]])) for name in ("s0", "s2")]
    message = predictor_pb2.ColumnsReply()
    fill_columns(message, [0, 1, 2], [results[0], bad, results[1]])
    found = decode_columns_reply(message)
    assert (found.lanes, found.positions, found.counts) == ([0, 2], [1, 1], [1, 1])
    assert {lane: type(error) for lane, error in found.errors.items()} == {1: InternalError}


def test_a_session_that_no_message_holds_hides_no_other() -> None:
    good = SessionInfo("s0", "m", "1", 0, True, 1e9, None, 8)
    bad = [good._replace(position=2**64), good._replace(created_at=1e30), good._replace(id="\ud800")]
    page = encode_session_page(SessionPage([*bad, good, *bad], "s0"))
    assert decode_session_page(page) == SessionPage([good], "s0")


BAD_INPUTS = {
    "nothing": types_pb2.Input(),
    "text and tokens": types_pb2.Input(text="a", tokens=[1]),
    "text and values": types_pb2.Input(text="a", values=types_pb2.Values(width=1, data=[1])),
    "tokens and values": types_pb2.Input(tokens=[1], values=types_pb2.Values(width=1, data=[1])),
    "half a row": types_pb2.Input(values=types_pb2.Values(width=2, data=[1, 2, 3])),
    "no width": types_pb2.Input(values=types_pb2.Values(data=[1])),
}


@pytest.mark.parametrize("message", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_an_input_that_is_not_exactly_one_of_three_is_refused(message: types_pb2.Input) -> None:
    with pytest.raises(InvalidInputError):
        decode_input(message)


@pytest.mark.parametrize(
    "value",
    [
        types_pb2.InputValue(),
        types_pb2.InputValue(values=[1, 2], shape=[3]),
        types_pb2.InputValue(values=[1, 2], shape=[-1, -2]),
        types_pb2.InputValue(values=[1], shape=[1] * 17),
    ],
    ids=["nothing", "too few", "negative", "too many axes"],
)
def test_a_setting_whose_shape_is_another_is_refused_or_empty(value: types_pb2.InputValue) -> None:
    message = types_pb2.Input(text="a", inputs={"limit": value})
    if not value.values:
        assert decode_input(message).inputs == (InputValue.of("limit", []),)
        return
    with pytest.raises(InvalidInputError, match="its shape says otherwise"):
        decode_input(message)


def test_a_prompt_is_not_both_text_and_tokens() -> None:
    with pytest.raises(InvalidInputError):
        decode_prompt(predictor_pb2.GenerateRequest(text="a", tokens=[1]))


def test_a_prompt_is_not_values() -> None:
    with pytest.raises(InvalidInputError):
        fill_input(predictor_pb2.GenerateRequest(), Input(values=np.zeros((1, 1), np.float32)))
