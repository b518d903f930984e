"""Codecs: what callers send becomes tensors, and tensors become predictions, whatever runs the steps fell into."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.bundles import (
    LOAD_MEAN,
    LOAD_SCALE,
    VOCABULARY,
    write_tiny_bundle,
    write_tiny_forecast_bundle,
    write_tiny_stream_bundle,
)
from tidegate.api import Input, Prediction, StepOptions, Tensor
from tidegate.bundle import (
    Bundle,
    Cyclic,
    ForecastCodec,
    Manifest,
    Standard,
    TensorSpec,
    TokenCodec,
    read_bundle,
    write_bundle,
)
from tidegate.codecs import Codec, make_codec
from tidegate.codecs.forecast import Forecasts
from tidegate.codecs.scores import Band, Ranges
from tidegate.codecs.tensors import Tensors
from tidegate.codecs.tokens import Tokens, top_candidates
from tidegate.errors import BundleError, InvalidInputError
from tidegate.proof import ABSOLUTE, excess


def characters(unknown: int | None = None) -> Tokens:
    return Tokens("abcde", unknown, TokenCodec())


def forecasts() -> Forecasts:
    transforms: list[Standard | Cyclic] = [
        Standard(kind="standard", mean=10.0, scale=4.0),
        Cyclic(kind="cyclic", period=24.0),
    ]
    spec = ForecastCodec(target="load", horizon=2, quantiles=(0.1, 0.5, 0.9), seasonal_naive_error=1.0)
    return Forecasts(("load", "hour"), transforms, spec)


def tensors(*, is_per_step: bool = True) -> Tensors:
    axes = ("batch", "time", 3) if is_per_step else ("batch", 3)
    source = TensorSpec(name="x", dtype="float32", axes=("batch", "time", 2))
    return Tensors([source], (), [TensorSpec(name="y", dtype="float32", axes=axes)])


def ids(width: int | None = None) -> Tensors:
    axes = ("batch", "time") if width is None else ("batch", "time", width)
    return Tensors([TensorSpec(name="x", dtype="int32", axes=axes)], (), [])


def whole_numbers() -> Tensors:
    return Tensors([TensorSpec(name="x", dtype="int64", axes=("batch", "time", 2))], (), [])


def refusal(codec: Codec, source: Input) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        codec.encode(source)
    return caught.value


def test_text_and_tokens_are_the_same_input() -> None:
    codec = characters()
    for text, tokens in (("b", [1]), ("abca", [0, 1, 2, 0])):
        (by_text,), (by_tokens,) = codec.encode(Input(text=text)), codec.encode(Input(tokens=tokens))
        assert by_text.dtype == by_tokens.dtype == np.int64
        assert by_text.tolist() == by_tokens.tolist() == tokens


def test_an_unknown_character_is_the_unknown_token_where_there_is_one() -> None:
    codec = characters(unknown=4)
    assert [codec.encode(Input(text=text))[0].tolist() for text in ("x", "axb")] == [[4], [0, 4, 1]]


@pytest.mark.parametrize("length", [31, 32, 1000])
def test_a_long_text_is_read_as_its_characters_are(length: int) -> None:
    codec, strict = characters(unknown=4), characters()
    text = ("abc€\ud800\U0010ffff" * length)[:length]
    (found,) = codec.encode(Input(text=text))
    assert found.tolist() == [codec.encode(Input(text=character))[0].item() for character in text]
    error = refusal(strict, Input(text=text))
    assert (error.reason, error.message) == ("UNKNOWN_TOKEN", "unknown character '€' at step 3")
    assert strict.encode(Input(text="c" * length))[0].tolist() == [2] * length


VALUES = np.zeros((2, 2))


@pytest.mark.parametrize(
    ("codec", "source", "reason", "message"),
    [
        (characters(), Input(text=""), "EMPTY_SEQUENCE", "at least one character"),
        (characters(), Input(tokens=[]), "EMPTY_SEQUENCE", "at least one token"),
        (forecasts(), Input(values=np.zeros((0, 2))), "EMPTY_SEQUENCE", "at least one row"),
        (tensors(), Input(values=np.zeros((0,))), "EMPTY_SEQUENCE", "at least one row"),
        (characters(), Input(text="x"), "UNKNOWN_TOKEN", "unknown character 'x' at step 0"),
        (characters(), Input(text="abzd"), "UNKNOWN_TOKEN", "unknown character 'z' at step 2"),
        (
            characters(),
            Input(tokens=[5]),
            "TOKEN_OUT_OF_RANGE",
            "token 5 at step 0 is out of range: ids go from 0 to 4",
        ),
        (characters(), Input(tokens=[0, -1]), "TOKEN_OUT_OF_RANGE", "token -1 at step 1"),
        (characters(), Input(tokens=[0, 1 << 70]), "TOKEN_OUT_OF_RANGE", "whole numbers"),
        (characters(), Input(values=VALUES), "WRONG_KIND", "takes text or tokens, not values"),
        (forecasts(), Input(text="a"), "WRONG_KIND", "takes values, not text"),
        (tensors(), Input(tokens=[1]), "WRONG_KIND", "takes values, not tokens"),
        (ids(), Input(values=VALUES), "WRONG_KIND", "takes tokens, not values"),
        (Tokens(["the", "a"], None, TokenCodec()), Input(text="a"), "WRONG_KIND", "send tokens"),
        (characters(), Input(), "INVALID_INPUT", "exactly one of text, tokens and values"),
        (characters(), Input(text="a", tokens=[1]), "INVALID_INPUT", "exactly one of text, tokens and values"),
        (forecasts(), Input(values=np.zeros((4, 3))), "WRONG_WIDTH", r"needs 2 values (load, hour), got 3"),
        (tensors(), Input(values=np.zeros((4, 1))), "WRONG_WIDTH", "needs 2 values, got 1"),
        (forecasts(), Input(values=np.zeros(2)), "INVALID_INPUT", "rows of numbers"),
        (forecasts(), Input(values=np.array([[1.0, 2], [np.nan, 2]])), "NOT_FINITE", "row 1: load is not"),
        (forecasts(), Input(values=np.array([[1.0, -np.inf]])), "NOT_FINITE", "row 0: hour is not"),
        (tensors(), Input(values=np.array([[1.0, 1e39]])), "NOT_FINITE", "row 0: column 1 is not"),
        (whole_numbers(), Input(values=np.array([[1.0, 2.0**53]])), "NOT_FINITE", "row 0: 9.0072e+15 is no int64"),
    ],
)
def test_bad_input_is_refused_with_what_and_where(codec: Codec, source: Input, reason: str, message: str) -> None:
    error = refusal(codec, source)
    assert error.reason == reason
    assert message in error.message


def test_features_are_scaled_on_the_way_in_and_the_target_on_the_way_out() -> None:
    codec = forecasts()
    (columns,) = codec.encode(Input(values=np.array([[14.0, 6.0], [10.0, 12.0]])))
    assert columns.dtype == np.float32
    assert excess(np.array([[1, 1, 0], [0, 0, -1]]), columns) <= ABSOLUTE
    scaled = np.array([[[[-1, 0, 1], [0, 0.5, 2]]]], np.float32)
    (prediction,) = codec.split(codec.read({"quantiles": scaled, "surprise": np.ones((1, 1), np.float32)}, [0], 1, 1))
    assert prediction.forecast == [((0.1, 0.5, 0.9), [[6.0, 10.0, 14.0], [10.0, 12.0, 18.0]])]


@given(
    logits=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5), min_size=1, max_size=4),
    top=st.integers(0, 7),
)
def test_candidates_are_the_largest_with_their_softmax(logits: list[list[float]], top: int) -> None:
    array = np.array(logits, np.float32)
    found, probabilities = top_candidates(array, top)
    exact = np.exp(array.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    assert found.shape == probabilities.shape == (len(logits), min(top, 5))
    for step, their, row in zip(found, probabilities, exact, strict=True):
        assert len(set(step.tolist())) == len(step)
        assert excess(np.sort(row)[::-1][: len(step)], row[step]) <= ABSOLUTE
        assert excess(row[step], np.asarray(their)) <= ABSOLUTE


Outputs = Mapping[str, Tensor]


def outputs_of(codec: Codec, rng: np.random.Generator, rows: int, steps: int) -> Outputs:
    def some(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, steps, *shape)).astype(np.float32)

    match codec:
        case Tokens():
            return {"logits": some(5), "surprise": some()}
        case Forecasts():
            return {"quantiles": some(2, 3), "surprise": some()}
        case _:
            return {"y": some(3)}


@pytest.mark.parametrize("make", [characters, forecasts, tensors])
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5), every_step=st.booleans(), row=st.integers(0, 2))
def test_pieces_join_to_what_the_whole_gives(
    make: Callable[[], Codec], cuts: list[int], every_step: bool, row: int
) -> None:
    codec, steps, options = make(), sum(cuts), StepOptions(2, every_step)
    whole = outputs_of(codec, np.random.default_rng(0), 3, steps)
    expected = codec.join([codec.cut(whole, row, options, is_last=True)], steps, options)
    pieces, start = [], 0
    for size in cuts:
        part = {name: array[:, start : start + size] for name, array in whole.items()}
        start += size
        pieces.append(codec.cut(part, row, options, is_last=start == steps))
    found = codec.join(pieces, steps, options)
    assert texts(found) == texts(expected)
    if not every_step:
        assert texts(codec.split(codec.read(whole, [0, row], steps, 2))[1]) == texts(expected)
    told = found.next or found.forecast or list((found.outputs or {})["y"])
    assert (found.length, len(told)) == (steps, steps if every_step else 1)


def texts(prediction: Prediction) -> tuple[object, ...]:
    """A prediction as something comparable; means may differ in the last bits."""
    surprise = prediction.surprise
    outputs = {name: array.tolist() for name, array in (prediction.outputs or {}).items()}
    told = (prediction.length, prediction.next, prediction.forecast, outputs)
    return told if surprise is None else (*told, pytest.approx(surprise.mean, abs=1e-6), surprise.unit, surprise.steps)


@pytest.mark.parametrize("every_step", [False, True])
def test_an_output_of_the_last_step_is_told_once_however_the_chunk_was_cut(every_step: bool) -> None:
    codec, options = tensors(is_per_step=False), StepOptions(1, every_step)
    runs = [{"y": np.full((1, 3), value, np.float32)} for value in (1, 2, 3)]
    pieces = [codec.cut(run, 0, options, is_last=index == 2) for index, run in enumerate(runs)]
    found = codec.join(pieces, 9, options)
    assert (found.length, (found.outputs or {})["y"].tolist()) == (9, [[3, 3, 3]])
    (whole,) = codec.split(codec.read(runs[2], [0], 9, 1))
    assert (whole.length, (whole.outputs or {})["y"].tolist()) == (9, [[3, 3, 3]])


def test_the_size_of_a_reply_is_known_beforehand() -> None:
    for codec in (characters(), forecasts(), tensors()):
        last, every = codec.reply_bytes(1000, StepOptions(3)), codec.reply_bytes(1000, StepOptions(3, every_step=True))
        assert last < 1000 < 100 * last < every
    assert characters().reply_bytes(1, StepOptions(1 << 40)) == characters().reply_bytes(1, StepOptions(5))


def vocabulary(tokens: object = VOCABULARY, **more: object) -> bytes:
    return json.dumps({"tokens": list(tokens) if isinstance(tokens, str) else tokens, **more}).encode()


def scaling(*transforms: object) -> bytes:
    return json.dumps({"features": transforms}).encode()


STANDARD, CYCLIC = {"kind": "standard", "mean": 1, "scale": 2}, {"kind": "cyclic", "period": 24}

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "cut off": (b"{", "not a vocabulary"),
    "a list": (b"[]", "not a vocabulary"),
    "no tokens": (b"{}", "not a vocabulary"),
    "numbers for tokens": (vocabulary(list(range(65))), "not a vocabulary"),
    "text for tokens": (json.dumps({"tokens": VOCABULARY}).encode(), "not a vocabulary"),
    "a key more": (vocabulary(colour="blue"), "not a vocabulary"),
    "a key twice": (b'{"tokens": [], "tokens": []}', "'tokens' is there twice"),
    "half a character": (vocabulary(["\ud800", *VOCABULARY[1:]]), "not a vocabulary"),
    "too few tokens": (vocabulary("a"), "1 tokens"),
    "a token twice": (vocabulary("a" * 65), "twice"),
    "an unknown token beyond": (vocabulary(unknown=65), "unknown token 65"),
    "an unknown token before": (vocabulary(unknown=-1), "unknown token -1"),
    "a truth for an id": (vocabulary(unknown=True), "not a vocabulary"),
    "no transforms": (scaling(), "0 transforms for 2 features"),
    "transforms of no kind": (scaling({"kind": "log"}, {}), "not a scaling file"),
    "null": (b"null", "not a scaling file"),
    "text for a number": (scaling({**STANDARD, "mean": "1"}, CYCLIC), "not a scaling file"),
    "a scale of zero": (scaling({**STANDARD, "scale": 0}, CYCLIC), "not a scaling file"),
    "no number": (scaling({**STANDARD, "mean": math.nan}, CYCLIC), "NaN is no finite number"),
    "a period of zero": (scaling(STANDARD, {**CYCLIC, "period": 0}), "not a scaling file"),
    "no period": (scaling(STANDARD, {"kind": "cyclic"}), "not a scaling file"),
    "a column less": (scaling(STANDARD, STANDARD), "the codec makes float32 [2]"),
    "a column more": (scaling(CYCLIC, CYCLIC), "the codec makes float32 [4]"),
    "a cyclic target": (scaling(CYCLIC, STANDARD), "the target 'load' is cyclic"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_codec_file_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    is_scaling = b"features" in content or content == b"null"
    path = (write_tiny_forecast_bundle if is_scaling else write_tiny_bundle)(tmp_path)
    file = "scaling.json" if is_scaling else "vocabulary.json"
    with pytest.raises(BundleError) as caught:
        make_codec(with_file(path, tmp_path / "other", {file: content}))
    assert message in caught.value.message
    assert file in caught.value.message


TOKENS, LOGITS = TensorSpec(name="x", dtype="int64", axes=("batch", "time")), ("batch", "time", 65)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TOKENS, TOKENS.model_copy(update={"name": "y"}))}, "2 inputs, the codec makes one"),
        ({"inputs": (TOKENS.model_copy(update={"dtype": "float32"}),)}, "x takes float32 [] a step"),
        ({"inputs": (TOKENS.model_copy(update={"axes": LOGITS}),)}, "x takes int64 [65] a step"),
        ({"inputs": (TOKENS.model_copy(update={"axes": ("batch",)}),)}, "x has no axis 'time'"),
        ({"codec": TokenCodec(output="none")}, "the codec names an output 'none'"),
        ({"codec": TokenCodec(output="surprise")}, "surprise gives [] a step, the codec reads 1 axes"),
        ({"codec": TokenCodec(surprise="logits")}, "logits gives [65] a step, the codec reads 0 axes"),
        ({"codec": TokenCodec(surprise="none")}, "the codec names an output 'none'"),
    ],
)
def test_a_codec_that_does_not_fit_its_graph_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    bundle = read_bundle(write_tiny_bundle(tmp_path))
    with pytest.raises(BundleError) as caught:
        make_codec(replace(bundle, manifest=bundle.manifest.model_copy(update=changes)))
    assert message in caught.value.message


@pytest.mark.parametrize("changes", [{"horizon": 4}, {"quantiles": (0.1, 0.9)}])
def test_a_forecast_of_another_shape_than_the_codecs_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    bundle = read_bundle(write_tiny_forecast_bundle(tmp_path))
    codec = bundle.manifest.codec.model_copy(update=changes)
    with pytest.raises(BundleError, match=r"quantiles gives \[3, 3\] a step"):
        make_codec(replace(bundle, manifest=bundle.manifest.model_copy(update={"codec": codec})))


def test_a_codec_that_names_an_output_which_is_not_there_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(write_tiny_stream_bundle(tmp_path))
    codec = bundle.manifest.codec.model_copy(update={"outputs": ("score", "state")})
    with pytest.raises(BundleError, match="'state'"):
        make_codec(replace(bundle, manifest=bundle.manifest.model_copy(update={"codec": codec})))


def with_file(path: Path, root: Path, files: Mapping[str, bytes]) -> Bundle:
    """Return a copy of the bundle, written whole, with other content in ``files``."""
    manifest: Manifest = read_bundle(path).manifest
    content: dict[str, Any] = {name: (path / name).read_bytes() for name in manifest.files}
    return read_bundle(write_bundle(root, manifest, {**content, **files}))


def test_the_tiny_forecast_bundle_is_scaled_as_it_says(tmp_path: Path) -> None:
    codec = make_codec(read_bundle(write_tiny_forecast_bundle(tmp_path)))
    (columns,) = codec.encode(Input(values=np.array([[LOAD_MEAN + LOAD_SCALE, 0.0]])))
    assert excess(np.array([[1.0, 0.0, 1.0]]), columns) <= ABSOLUTE


@pytest.mark.parametrize(("low", "high"), [*permutations(range(5), 2)])
def test_a_band_is_two_quantiles_one_step_ahead(low: int, high: int) -> None:
    """In whatever order a model tells its quantiles, and nothing more is kept of them."""
    quantiles = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    band = Band("quantiles", column=0, low=low, high=high).cut(quantiles)
    assert band.tolist() == quantiles[:, :, 0][..., [low, high]].tolist()
    assert band.base is None


@given(st.integers(1, 3), st.data())
def test_values_outside_are_counted_the_same_in_one_row_and_in_many(columns: int, data: st.DataObject) -> None:
    values = st.floats(-2, 2, width=32) | st.just(math.nan)
    rows = np.array(data.draw(st.lists(st.lists(values, min_size=columns, max_size=columns), min_size=2)), np.float32)
    low = np.array([-1, 0.25, -np.inf], np.float32)[:columns]
    ranges = Ranges(low, np.ones(columns, np.float32))
    assert ranges.num_outside(rows) == sum(ranges.num_outside(row[None]) for row in rows)
