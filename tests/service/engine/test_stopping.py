"""Stop strings, however the text falls into tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.api import GeneratedToken
from tidegate.engine.stopping import StopMatcher

pieces = st.lists(st.text("ab ", max_size=4), max_size=25)
stops = st.lists(st.text("ab ", min_size=1, max_size=5), max_size=3)


def stop_at(text: str, stops: list[str]) -> int | None:
    """The naive answer: where the text ends because a stop string begins."""
    found = [text.index(stop) for stop in stops if stop in text]
    return min(found, default=None)


@given(tokens=pieces, stops=stops)
def test_text_and_tokens_are_those_of_the_naive_answer(tokens: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released: list[GeneratedToken] = []
    seen = ""
    is_stopped = False
    for index, text in enumerate(tokens):
        events, is_stopped = matcher.push(index, text, 100 + index)
        released += events
        seen += text
        assert matcher.num_tokens == index + 1
        assert is_stopped == (stop_at(seen, stops) is not None)
        if is_stopped:
            break
    if not is_stopped:
        released += matcher.flush()
    end = stop_at(seen, stops)
    assert matcher.text == "".join(event.text for event in released) == seen[:end]
    assert matcher.tokens == [event.id for event in released] == list(range(matcher.num_tokens))
    assert [event.position for event in released] == [100 + event.id for event in released]


@given(tokens=pieces, stops=stops, rest=pieces)
def test_what_may_become_a_stop_string_is_held_and_nothing_else(
    tokens: list[str], stops: list[str], rest: list[str]
) -> None:
    matcher = StopMatcher(stops)
    seen = told = ""
    for index, text in enumerate(tokens):
        events, is_stopped = matcher.push(index, text, index)
        seen += text
        told += "".join(event.text for event in events)
        if is_stopped:
            return
        held = seen[len(told) :]
        # Told text stays text whatever comes; of what is held, some token reaches into a possible beginning.
        later = stop_at(seen + "".join(rest), stops)
        assert later is None or later >= len(told)
        if held:
            assert any(stop.startswith(seen[start:]) for stop in stops for start in range(len(told), len(seen)))


def test_without_stop_strings_every_token_is_told_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push(5, "x", 1) == ([GeneratedToken(5, "x", 1)], False)
    assert matcher.flush() == []


def test_a_stop_strings_tokens_are_told_without_its_text() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push(0, "so E", 1) == ([], False)
    assert matcher.push(1, "N", 2) == ([], False)
    events, is_stopped = matcher.push(2, "D!", 3)
    assert is_stopped
    assert events == [GeneratedToken(0, "so ", 1), GeneratedToken(1, "", 2), GeneratedToken(2, "", 3)]


def test_a_beginning_that_comes_to_nothing_is_told_late_and_whole() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push(0, "a", 1) == ([], False)
    assert matcher.push(1, "a", 2) == ([], False)
    assert matcher.push(2, "a", 3) == ([GeneratedToken(0, "a", 1)], False)
    assert matcher.push(3, "c", 4)[0] == [GeneratedToken(i, t, i + 1) for i, t in [(1, "a"), (2, "a"), (3, "c")]]
