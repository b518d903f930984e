"""What callers may give, what they may not, and in which words that is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tidegate.api import Input, Sampling, StepOptions
from tidegate.client import AsyncClient, Client
from tidegate.client.arguments import argument_error
from tidegate.client.channel import ChannelPlan
from tidegate.client.requests import (
    as_sequences,
    attach_request,
    columns_request,
    fork_request,
    generate_request,
    one_input,
    open_request,
    predict_request,
    restore_request,
    sampling_of,
    session_generate_request,
    session_ids,
    step_request,
)
from tidegate.errors import InvalidInputError

SNAPSHOT = b"snapshot"
Make = Callable[[], object]


@pytest.mark.parametrize(
    "given",
    [
        "ROMEO:",
        Input(text="ROMEO:"),
        np.array([1, 2, 3]),
        np.array([[0.5, 1.0], [2.0, 3.0]]),
    ],
    ids=["text", "input", "tokens", "values"],
)
def test_one_sequence_is_a_list_of_one(given: Any) -> None:
    (only,) = as_sequences(given)
    assert only is given


@pytest.mark.parametrize("given", [[1, 2, 3], (1, np.int64(2)), [[0.5, 1.0], [2.0, 3.0]], [(1, 0.5)]], ids=str)
def test_lists_of_numbers_are_one_sequence_too(given: Any) -> None:
    assert as_sequences(given) == [list(given)]


@pytest.mark.parametrize(
    "given",
    [["ab", "c"], ("ab", [1, 2]), [[1, 2], [3]], np.array([[1, 2], [3, 4]]), np.zeros((2, 3, 1)), iter(["a", "b"]), []],
    ids=["texts", "mixed", "lists", "array of tokens", "array of values", "iterator", "none"],
)
def test_several_sequences_stay_several(given: Any) -> None:
    assert len(as_sequences(given)) == (0 if isinstance(given, list) and not given else 2)


def test_numbers_of_numpy_are_numbers() -> None:
    request = step_request("s", np.int64(3), Input(tokens=[1]), StepOptions(np.uint8(2), np.bool_(True)))  # type: ignore[arg-type]
    assert (request.position, request.top, request.every_step) == (3, 2, True)
    sampling = Sampling(max_tokens=np.int32(5), temperature=np.float32(0.5), seed=np.uint64(7))  # type: ignore[arg-type]
    made = generate_request("m", None, "a", sampling)
    assert (made.max_tokens, made.temperature, made.seed) == (5, 0.5, 7)
    opened = open_request("m", {"ttl_seconds": np.float32(2.5), "seed": np.int64(1)})  # type: ignore[typeddict-item]
    assert (opened.ttl_seconds, opened.seed) == (2.5, 1)


def test_a_text_by_itself_is_one_id_and_one_stop_string() -> None:
    assert list(fork_request("s", "abc", None).ids) == ["abc"]
    assert list(fork_request("s", ("a", "b"), None).ids) == ["a", "b"]
    assert sampling_of({"stop": "END"}).stop == ("END",)
    assert sampling_of({"stop": ["a", "b"]}).stop == ("a", "b")
    assert sampling_of({}) == Sampling()
    assert session_ids("abc") == ["abc"]


OPTIONS = StepOptions()


def plain_step(**given: Any) -> Make:
    position, top, every_step = given.pop("position", 0), given.pop("top", 1), given.pop("every_step", False)
    source = {"text": None, "tokens": None, "values": None} | (given or {"text": "a"})
    return lambda: step_request("s", position, one_input(**source), StepOptions(top, every_step))


def columns(**given: Any) -> Make:
    asked: dict[str, Any] = {
        "tokens": [1],
        "values": None,
        "lengths": None,
        "positions": None,
        "options": StepOptions(),
    }
    return lambda: columns_request(**{"lanes": [0], **asked, **given})


def sampled(**given: Any) -> Make:
    return lambda: session_generate_request("s", 0, None, sampling_of(given))  # type: ignore[arg-type]


WRONG: dict[str, tuple[Make, str]] = {
    "a number for a text": (plain_step(text=7), "text must be a text that UTF-8 can carry, not 7"),
    "half a pair": (plain_step(text="a\ud83d"), "text must be a text that UTF-8 can carry, not"),
    "a text for tokens": (plain_step(tokens="abc"), "tokens must be a list of whole numbers from -"),
    "a number for tokens": (plain_step(tokens=7), "tokens must be a list of whole numbers from -"),
    "fractions for tokens": (plain_step(tokens=[1.5]), "tokens must be a list of whole numbers from -"),
    "an array of fractions": (plain_step(tokens=np.array([1.0])), "tokens must be a list of whole numbers from -"),
    "a table of tokens": (plain_step(tokens=np.array([[1]])), "tokens must be a list of whole numbers from -"),
    "a large token": (plain_step(tokens=[2**63]), "tokens must be a list of whole numbers from -"),
    "words for values": (plain_step(values=[["a"]]), "values must be rows of numbers, [step, feature], not [['a']]"),
    "rows of two widths": (plain_step(values=[[1.0], [1.0, 2.0]]), "values must be rows of numbers"),
    "a negative position": (plain_step(position=-1), "position must be a whole number from 0 to 9223372036854775807"),
    "a position in words": (plain_step(position="3"), "position must be a whole number from 0 to"),
    "a fraction of candidates": (plain_step(top=1.5), "top must be a whole number from 0 to 4294967295, not 1.5"),
    "no candidates": (plain_step(top=-1), "top must be a whole number from 0 to 4294967295, not -1"),
    "a word for a flag": (plain_step(every_step="yes"), "every_step must be True or False, not 'yes'"),
    "words for a setting": (
        plain_step(text="a", inputs={"limit": "high"}),
        "inputs must be a mapping of names to numbers or arrays of numbers, not {'limit': 'high'}",
    ),
    "a list of settings": (lambda: open_request("m", {"inputs": [6]}), "inputs must be a mapping of names"),  # type: ignore[typeddict-item]
    "a number for a model": (lambda: open_request(7, {}), "model must be a text that UTF-8 can carry, not 7"),  # type: ignore[arg-type]
    "a number for a version": (
        lambda: predict_request("m", 2, ["a"], StepOptions()),  # type: ignore[arg-type]
        'version must be a text, like "2", not 2',
    ),
    "a number for sequences": (
        lambda: predict_request("m", None, 7, StepOptions()),  # type: ignore[arg-type]
        "sequences must be a sequence, or a list of them: texts, tokens or values, not 7",
    ),
    "bytes for sequences": (
        lambda: predict_request("m", None, b"ab", StepOptions()),  # type: ignore[arg-type]
        "sequences must be a sequence",
    ),
    "half a pair in one of several": (
        lambda: predict_request("m", None, ["a", "\ud83d"], StepOptions()),
        "sequence 1: text must be a text that UTF-8 can carry",
    ),
    "a number for an id": (lambda: open_request("m", {"id": 7}), "id must be a text"),  # type: ignore[typeddict-item]
    "a lifetime in words": (
        lambda: open_request("m", {"ttl_seconds": "soon"}),  # type: ignore[typeddict-item]
        "ttl_seconds must be a number, not 'soon'",
    ),
    "no lifetime": (lambda: open_request("m", {"idle_seconds": 0}), "must be greater than 0"),
    "no lifetime after a restore": (lambda: restore_request(SNAPSHOT, {"ttl_seconds": 0}), "must be greater than 0"),
    "a text for a snapshot": (lambda: restore_request("s", {}), "snapshot must be the bytes of a snapshot"),  # type: ignore[arg-type]
    "no forks": (lambda: fork_request("s", None, 0), "a fork makes one session at least"),
    "forks under no ids": (lambda: fork_request("s", [], None), "a fork makes one session at least"),
    "forks under numbers": (lambda: fork_request("s", [1, 2], None), "ids must be a text, or a list of texts"),  # type: ignore[list-item]
    "fewer than no forks": (lambda: fork_request("s", None, -1), "count must be a whole number from 1 to"),
    "a heat in words": (sampled(temperature="hot"), "temperature must be a number, not 'hot'"),
    "stop at numbers": (sampled(stop=[7]), "stop must be a text, or a list of texts, not (7,)"),
    "stop at a number": (sampled(stop=7), "stop must be a text, or a list of texts, not 7"),
    "a seed below": (sampled(seed=-1), "seed must be a whole number from 0 to 18446744073709551615, not -1"),
    "a number for lanes": (columns(lanes=0), "lanes must be a list of whole numbers from 0 to 4294967295, not 0"),
    "lengths in words": (columns(lengths=["1"]), "lengths must be a list of whole numbers"),
    "negative positions": (columns(positions=[-1]), "positions must be a list of whole numbers"),
    "tokens in words": (columns(tokens="17"), "tokens must be a list of whole numbers"),
    "numbers for sessions": (lambda: session_ids([1, 2]), "sessions must be sessions or their ids, not [1, 2]"),  # type: ignore[list-item]
    "a number for the server": (lambda: Client(8081), "address must be HOST:PORT, "),  # type: ignore[arg-type]
    "a server that is none": (lambda: AsyncClient(None), "address must be HOST:PORT, "),  # type: ignore[arg-type]
    "no session": (lambda: ChannelPlan("host:1").metadata(None), "session must be a session's id, of A-Z"),  # type: ignore[arg-type]
    "no sequences": (lambda: predict_request("m", None, None, OPTIONS), "sequences must be a sequence, or a list"),  # type: ignore[arg-type]
    "a lane below": (lambda: attach_request(-1, ["s"]), "first_lane must be a whole number from 0 to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_with_what_does(name: str) -> None:
    make, words = WRONG[name]
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert words in caught.value.message


def test_a_wrong_sequence_is_named_by_its_index() -> None:
    with pytest.raises(InvalidInputError) as caught:
        predict_request("m", None, ["a", [1.5]], StepOptions())  # type: ignore[list-item]
    assert caught.value.details == {"sequence": "1"}


def test_what_is_long_is_not_repeated() -> None:
    assert len(argument_error(tokens=["a" * 10_000]).message) < 300
    assert len(argument_error(tokens=np.zeros(10_000)).message) < 300
