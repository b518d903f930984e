"""Finds out what each tensor of a foreign graph is: guesses axes, runs, compares, pairs states.

Tries guesses in the order of their likelihood (`axes`); the first that holds is taken. Where the graph has a time axis,
pairs of states are proved by streaming (`pairing`). Where one run is one step, nothing of that can be tried: what the
graph does with a state and what it is called decide, or the caller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from tidegate.bundle import BATCH, TIME, StateSpec, TensorSpec
from tidegate_export.errors import ExportError
from tidegate_export.importing.axes import Guess, example, guesses
from tidegate_export.importing.edit import with_axes_kept
from tidegate_export.importing.evidence import STRONG, Evidence, agreement, batch_likelihood, is_length, similarity
from tidegate_export.importing.flow import Flow, Link
from tidegate_export.importing.foreign import Array, Arrays, Declared, Foreign, declared, random_array
from tidegate_export.importing.pairing import STEPS, NotStreamableError, Search
from tidegate_export.importing.plan import Axes, Found, is_along_time, sized
from tidegate_export.importing.refusals import (
    RejectedError,
    grows,
    lacks_rows,
    only_said,
    unsaid_setting,
    why_not_streamable,
    without_state,
)
from tidegate_export.importing.request import ImportRequest, SaidRoles
from tidegate_export.importing.roles import Judge
from tidegate_export.importing.shapes import Readings

_MOST_ALONE = 4
"""Guesses that are tried to say what a graph without states lacks."""

_TRIES = 3
_LEAST_SCORE = 2.0
"""Of a state that streaming cannot tell from data, by what the graph does with it and its names."""

_SURE = 4.0
"""From here on an input is a state by the graph and its names, whatever streaming along a guessed axis says."""

_MOST_ELEMENTS = 1 << 26
"""Of one input in a try: declared sizes may be anything."""


@dataclass(frozen=True, slots=True)
class Explorer:
    """A graph, its constants inside, and everything that is known of it before it is run.

    `initial` holds first states by input, batch axis of size 1; `slack` what may differ where the graph rounds.
    """

    model: onnx.ModelProto
    foreign: Foreign
    inputs: Sequence[Declared]
    evidence: Evidence
    flow: Flow
    request: ImportRequest
    roles: SaidRoles
    initial: Mapping[str, Array]
    slack: float
    tolerance: float
    readings: Readings

    def explore(self) -> Found:
        """Return what was found.

        Raises:
            ExportError: Nothing holds; with the reason of the guess that got furthest, and what to do.
        """
        is_alone = len(self.inputs) == 1 and not self.request.contexts  # no state, whatever its axes are
        if is_alone and self.flow.layers:
            raise ExportError(str(without_state(self.flow)))
        self._refuse_settings()
        rejections = [without_state(self.flow, self.inputs)] if is_alone else []
        unstreamed: list[Guess] = []
        failed: set[str] = set()
        """Inputs along whose time axis the graph does not stream: taking it step by step makes no stream of it."""
        tried = guesses(self.model, self.inputs, self.readings, self.likely_states(), self.request)
        for guess in itertools.islice(tried, _MOST_ALONE if is_alone else None):
            attempt = _Try(self, guess)
            if any(TIME not in guess[name] for name in failed):
                continue
            try:
                found = attempt.found()
                if not any(_is_refuted(found, guess, other) for other in unstreamed):
                    return self._as_time(guess) if self._hides_time(found, guess) else self._with_steps(found, guess)
            except RejectedError as error:
                is_stream = attempt.has_time and all(TIME not in guess[name] for name in self.likely_states())
                if isinstance(error.__cause__, NotStreamableError):
                    unstreamed.append(guess)
                if is_stream and isinstance(error.__cause__, NotStreamableError):
                    failed |= {name for name, axes in guess.items() if TIME in axes}
                rejections += [error, *attempt.growth()]
        if not rejections:
            raise ExportError("--batch-axis, --time-axis or --shape leave no way to read the graph's axes")
        raise ExportError(str(max(rejections, key=lambda error: error.depth)))

    def _hides_time(self, found: Found, guess: Guess) -> bool:
        """Whether nothing but a guess says that a free axis of the data is the batch: no state has it, no name."""
        has_none = all(all(axis == 1 for axis in state.axes) for state in found.states)
        dims = {item.name: item.dims or () for item in self.inputs}
        labels = [dims[spec.name][guess[spec.name].index(BATCH)] for spec in found.data if BATCH in guess[spec.name]]
        is_named = any(label == BATCH or batch_likelihood(str(label)) for label in labels)
        may_be_time = None not in self.request.time_axes.values()
        return found.is_frame and bool(found.states) and has_none and bool(labels) and not is_named and may_be_time

    def _as_time(self, guess: Guess) -> Found:
        """Return what is found where that axis is the time.

        Raises:
            ExportError: The graph does not stream along it.
        """
        other = {name: tuple(TIME if axis == BATCH else axis for axis in axes) for name, axes in guess.items()}
        try:
            return _Try(self, other).found()
        except RejectedError as error:
            told = "; if the free axis is the batch, and one run is one step, say --time-axis none"
            raise ExportError(f"{error}{told}") from error

    def _with_steps(self, found: Found, guess: Guess) -> Found:
        """Return `found`, or, if it takes a free axis of the data for one step, what is found where that is the time.

        Raises:
            ExportError: The graph takes several steps along that axis, and does not stream.
        """
        dims = {item.name: item.dims or () for item in self.inputs}
        places = {
            spec.name: [
                place
                for place, (axis, dim) in enumerate(zip(guess[spec.name], dims[spec.name], strict=True))
                if axis == 1 and isinstance(dim, str)
            ]
            for spec in found.data
        }
        free = {name: some for name, some in places.items() if some and name not in self.request.shapes}
        if not found.is_frame or not free or None in self.request.time_axes.values():
            return found
        for chosen in itertools.islice(itertools.product(*free.values()), _MOST_ALONE):
            along = dict(zip(free, chosen, strict=True))
            other = {
                name: tuple(TIME if along.get(name) == place else axis for place, axis in enumerate(axes))
                for name, axes in guess.items()
            }
            attempt = _Try(self, other)
            # No state has a time axis: what looks like one, and has it here, is fed as data.
            attempt.likely = {name: score for name, score in attempt.likely.items() if name not in along}
            try:
                return attempt.found()
            except RejectedError as error:
                if isinstance(error.__cause__, NotStreamableError):
                    told = "; if each run takes one step along the free axis, say --time-axis none"
                    raise ExportError(f"{error}{told}") from error
        return found

    def _refuse_settings(self) -> None:
        """A single number that no output can be is a setting: nothing runs without its value."""
        outputs = declared(self.model.graph.output)
        likely, names = self.likely_states(), {item.name for item in self.inputs}
        for item in self.inputs:
            dims = item.dims or ()
            is_one = all(dim == 1 for dim in dims) and any(other not in likely for other in names - {item.name})
            could_be = any(self._may_be_one(item, output) for output in outputs)
            is_told = item.name in self.roles.data or (dims and is_length(item.name))
            if is_one and not could_be and not is_told:
                raise ExportError(unsaid_setting(item.name, item.dtype, dims))

    def _may_be_one(self, item: Declared, output: Declared) -> bool:
        """Whether two tensors are of one kind, as far as the graph says it: the file often says wrong sizes."""
        if item.dtype != output.dtype:
            return False
        if output.name not in self.readings.sure.outputs:
            return item.dims is None or output.dims is None or len(item.dims) == len(output.dims)
        left, right = self.readings.sure.sized(item), self.readings.sure.outputs[output.name]
        return len(left) == len(right) and all(
            a is None or b is None or a == b for a, b in zip(left, right, strict=True)
        )

    def likely_states(self) -> dict[str, float]:
        """Return the inputs that look like states, by what speaks for it; each output makes one input look so.

        What a cache is filled with flows into it as the cache itself does: the input with fewer free axes, then the
        later one, is the cache.
        """
        ranks = {
            item.name: (-sum(isinstance(dim, str) for dim in item.dims or ()), place)
            for place, item in enumerate(self.inputs)
        }
        outputs = declared(self.model.graph.output)
        pairs = [
            (item.name, output.name) for item in self.inputs for output in outputs if self._may_be_one(item, output)
        ]
        said = self.roles.states
        likely = dict.fromkeys(said, math.inf)
        claimed = set(said.values())
        for name, output in sorted(pairs, key=lambda pair: (self.evidence.score(pair), ranks[pair[0]]), reverse=True):
            score = self.evidence.score((name, output))
            if agreement(name, output) < 1:  # of names that agree in a number only, every input has one
                score -= 4 * similarity(name, output)
            is_open = name not in likely and output not in claimed and self.roles.may_be_state(name)
            if score >= STRONG and is_open:
                likely[name] = score
                claimed.add(output)
        return likely


def _is_refuted(found: Found, guess: Guess, unstreamed: Guess) -> bool:
    """Whether data is to be taken step by step along whose time axis, with the same states, the graph did not stream.

    An input may look like a state and be none: only what was found to be a state says that the other guess was wrong.
    """
    if any(TIME in unstreamed[state.input] for state in found.states if state.input in unstreamed):
        return False
    names = [spec.name for spec in found.data if spec.name in unstreamed and spec.name in guess]
    return any(TIME in unstreamed[name] and TIME not in guess[name] for name in names)


class _Try:
    """One guess of the axes."""

    def __init__(self, explorer: Explorer, guess: Guess) -> None:
        self.explorer = explorer
        self.axes: dict[str, Axes] = dict(guess)
        self.dtypes = {item.name: item.dtype for item in explorer.inputs}
        self.rng = np.random.default_rng(0)
        self.has_time = any(TIME in axes for axes in guess.values())
        self.likely = explorer.likely_states()
        contexts = explorer.request.contexts
        self.overlaps = {name: item.size for name, item in contexts.items() if is_along_time(item, self.axes[name])}

    def found(self) -> Found:
        self._probe()
        self._keep_axes()
        candidates = {item.name: self._candidates(item.name) for item in self.explorer.inputs}
        self._refuse_fixed_rows(candidates)
        self._refuse_grown()
        return self._with_time(candidates) if self.has_time else self._by_frame(candidates)

    # ---- what the outputs' axes are

    def _probe(self) -> None:
        """Run at two sizes: what follows the rows in an output is its batch, what follows the steps its time."""
        has_batch = any(BATCH in axes for axes in self.axes.values())
        sizes = [(2, STEPS), (3, STEPS + 4)] if has_batch else [(1, STEPS), (1, STEPS + 4)]
        try:
            first, second = (self.explorer.foreign.run(self._feeds(rows, steps)) for rows, steps in sizes)
        except ExportError as error:
            raise RejectedError(0, f"{error}{self._example(': if these sizes are wrong, say them')}") from error
        for name in self.explorer.foreign.outputs:
            self.axes[name] = self._output_axes(name, first[name], second[name], sizes)
            self.dtypes[name] = first[name].dtype.name

    def _keep_axes(self) -> None:
        """Run one step of one row: outputs that lose axes there get them back."""
        try:
            single = self.explorer.foreign.run(self._feeds(1, 1))
        except ExportError:  # the streaming proof tells what keeps a single step from running
            return
        lost = {
            name: self.axes[name] for name in self.explorer.foreign.outputs if self._is_squeezed(name, single[name])
        }
        if lost:
            batch = [(name, self.axes[name].index(BATCH)) for name in self._names() if BATCH in self.axes[name]]
            model = with_axes_kept(self.explorer.model, lost, batch[0] if batch else None)
            self.explorer = replace(self.explorer, model=model, foreign=Foreign(model))

    def _is_squeezed(self, name: str, single: Array) -> bool:
        shape = sized(self.axes[name], 1, 1)
        return single.ndim < len(shape) and single.size == math.prod(shape)

    def _output_axes(self, name: str, first: Array, second: Array, sizes: Sequence[tuple[int, int]]) -> Axes:
        if first.ndim != second.ndim:
            raise RejectedError(1, f"output {name!r} has {first.ndim} axes in one run and {second.ndim} in another")
        axes = []
        for pair in zip(first.shape, second.shape, strict=True):
            if pair[0] == pair[1]:
                axes.append(pair[0])
            elif pair == (sizes[0][0], sizes[1][0]):
                axes.append(BATCH)
            elif pair == (sizes[0][1], sizes[1][1]):
                axes.append(TIME)
            else:
                self._refuse_growth(name)
                if pair[1] - pair[0] == sizes[1][1] - sizes[0][1]:
                    inputs = [other for other in self._names() if TIME in self.axes[other]]
                    told = lacks_rows(name, sizes[0][1] - pair[0], self.overlaps, inputs)
                    raise RejectedError(2, told) from NotStreamableError(told)
                reason = (
                    f"output {name!r} has {pair[0]} elements where the input has {sizes[0][1]} steps: not one a step"
                )
                raise RejectedError(
                    1, f"{reason}{self._example('; if the graph takes so many steps at once, make them one')}"
                ) from NotStreamableError(reason)
        if axes.count(TIME) > 1:
            reason = f"output {name!r} has two axes as long as the sequence, so a step's part of it never is complete"
            raise RejectedError(1, f"cannot stream: {reason}") from NotStreamableError(reason)
        if axes.count(BATCH) > 1:
            raise RejectedError(1, f"output {name!r} has the shape {list(first.shape)}: which axis is which?")
        return tuple(axes)

    def growth(self) -> Iterator[RejectedError]:
        """Yield why none of the likely states is one that comes out longer than it went in, along a free axis."""
        for item in self.explorer.inputs:
            if item.name not in self.likely:
                continue
            output = self._likeliest_output(item.name)
            if self._is_longer(item, self.axes.get(output, ())):
                yield grows(item.name, output)

    def _is_longer(self, item: Declared, after: Axes) -> bool:
        """Whether `after` is an input's axes but for one that is longer, and that the file leaves free."""
        before = self.axes[item.name]
        differing = [(a, b, dim) for a, b, dim in zip(before, after, item.dims or (), strict=False) if a != b]
        if len(before) != len(after) or len(differing) != 1:
            return False
        a, b, dim = differing[0]
        return isinstance(a, int) and isinstance(b, int) and b > a and isinstance(dim, str)

    def _refuse_growth(self, output: str) -> None:
        for name in self.likely:
            if output == self._likeliest_output(name):
                raise grows(name, output)

    def _likeliest_output(self, name: str) -> str:
        outputs: list[str] = self.explorer.foreign.outputs
        return max(outputs, key=lambda other: self.explorer.evidence.score((name, other)))

    def _feeds(self, rows: int, steps: int) -> Arrays:
        feeds = {}
        for item in self.explorer.inputs:
            shape = sized(self.axes[item.name], rows, steps + self.overlaps.get(item.name, 0))
            if math.prod(shape) > _MOST_ELEMENTS:
                raise ExportError(f"{item.name!r} would have the shape {list(shape)}: no step or state is that large")
            if item.name in self.likely or item.name in self.explorer.initial:
                feeds[item.name] = self._first_state(item.name, rows)
            elif self._is_length(item.name):
                feeds[item.name] = np.full(shape, steps, item.dtype)
            else:
                feeds[item.name] = random_array(item.dtype, shape, self.rng)
        return feeds

    def _first_state(self, name: str, rows: int) -> Array:
        shape = sized(self.axes[name], rows, 1)
        first = self.explorer.initial.get(name)
        return np.zeros(shape, self.dtypes[name]) if first is None else np.broadcast_to(first, shape).copy()

    def _is_length(self, name: str) -> bool:
        is_one_a_row = len(self.axes[name]) <= 1 and self.dtypes[name].startswith("int")
        return is_one_a_row and is_length(name) and name not in self.likely

    # ---- which inputs are states

    def _candidates(self, name: str) -> list[str]:
        """Return the outputs of an input's shape and dtype, likeliest first; what the caller said is all there is."""
        kind = self.dtypes[name], self.axes[name]
        outputs = self.explorer.foreign.outputs
        fits = [each for each in outputs if TIME not in kind[1] and (self.dtypes[each], self.axes[each]) == kind]
        said = self.explorer.roles.states
        if not self.explorer.roles.may_be_state(name):
            return []
        if name in said:
            output = said[name]
            if output not in fits:
                left, right = (f"{self.dtypes[item]} {list(self.axes[item])}" for item in (name, output))
                told = f"{name} is {left}, {output} is {right}: one cannot be fed to the other"
                raise RejectedError(4, f"--state {name}:{output}: {told}")
            return [output]
        free = [output for output in fits if output not in said.values()]
        return sorted(free, key=lambda output: -self.explorer.evidence.score((name, output)))

    def _with_time(self, candidates: Mapping[str, Sequence[str]]) -> Found:
        others = [item.name for item in self.explorer.inputs if TIME not in self.axes[item.name]]
        states = {name: candidates[name] for name in others if candidates[name]}
        rest = [name for name in others if name not in states]
        lengths = [name for name in rest if self._is_length(name)]
        sides = [name for name in rest if name not in lengths]
        self._refuse_unsaid(sides, lengths)
        if not states and not self.explorer.request.contexts:
            raise self._without_state()
        pairs = self._searched(states, sides, lengths)
        for name in states.keys() - pairs.keys() if self.explorer.slack else ():
            told = f"--state {name}:{states[name][0]}, or --data {name}"
            raise RejectedError(5, f"the graph rounds too coarsely to show whether {name} is a state: say {told}")
        if not pairs and not self.explorer.request.contexts:
            raise self._without_state()
        data = [item.name for item in self.explorer.inputs if item.name not in (*pairs, *lengths)]
        is_frame = any(TIME not in self.axes[name] for name in data)
        said = self.explorer.roles.states
        reasons = {
            name: "as you said, and proved by streaming" if name in said else "proved by streaming" for name in pairs
        }
        reasons |= {name: self._why_data(name) for name in data}
        return self._described(data, pairs, lengths[0] if lengths else None, reasons, is_frame=is_frame)

    def _why_data(self, name: str) -> str:
        if name in self.explorer.roles.data:
            return "as you said"
        if TIME in self.axes[name]:
            return "it has a time axis"
        return "no state: the same in all pieces of a sequence; it comes with every step"

    def _searched(
        self, states: Mapping[str, Sequence[str]], sides: Sequence[str], lengths: Sequence[str]
    ) -> dict[str, str]:
        explorer = self.explorer
        fed = {name: axes for name, axes in self.axes.items() if name in self.dtypes and name in self._names()}
        inputs = {
            name: random_array(self.dtypes[name], sized(axes, 1, STEPS + self.overlaps.get(name, 0)), self.rng)
            for name, axes in fed.items()
            if name not in states
        }
        search = Search(
            explorer.foreign,
            inputs,
            self.axes,
            {name: self._first_state(name, 1) for name in states},
            states,
            explorer.evidence,
            [name for name in states if name not in explorer.roles.states],
            explorer.slack,
            lengths[0] if lengths else None,
            self.overlaps,
            explorer.tolerance,
        )
        try:
            found = search.pairs()
            weighed = {item.pair: item for item in self._judge(states).weighed()}
            pairs = {name: output for name, output in found.items() if output is not None}
            weak = {
                name: weighed[pair]
                for name, pair in zip(pairs, pairs.items(), strict=True)
                if pair in weighed and weighed[pair].score < _LEAST_SCORE and search.is_data(name, found)
            }
        except NotStreamableError as error:
            why = only_said(explorer.roles) or why_not_streamable(explorer.flow, list(states))
            raise RejectedError(3, f"cannot stream: {error}; {why}") from error
        except ExportError as error:
            raise RejectedError(2, str(error)) from error
        for name, output in ((a, b) for a in states if a not in pairs for b in states[a]):
            if (name, output) in weighed and weighed[name, output].score >= _SURE:  # the guess of the axes is wrong
                told = f"say --state {name}:{output}, or --data {name}"
                raise RejectedError(4, f"{name} looks like a state, and does not carry the sequence on: {told}")
        for name, item in weak.items():
            if not item.is_never:
                told = f"nothing shows whether {name} is a state or data: say --state {name}:{item.pair[1]}"
                raise RejectedError(5, f"{told}, or --data {name}") from NotStreamableError(told)
        return {name: output for name, output in pairs.items() if name not in weak}

    def _by_frame(self, candidates: Mapping[str, Sequence[str]]) -> Found:
        self._refuse_unsaid([name for name in self._names() if not candidates[name]], [])
        decided = self._judge(candidates).decide()
        if not decided.pairs and not self.explorer.request.contexts:
            raise self._without_state()
        data = [name for name in self._names() if name not in decided.pairs]
        if not data:
            raise RejectedError(2, "every input looks like a state: say which are data, --data NAME")
        return self._described(data, decided.pairs, None, decided.reasons, is_frame=True)

    def _judge(self, candidates: Mapping[str, Sequence[str]]) -> Judge:
        explorer = self.explorer
        return Judge(candidates, explorer.roles, explorer.initial, explorer.evidence, explorer.flow, self)

    def stays_zero(self, names: Collection[str]) -> Collection[str]:
        """Return the outputs that are zero everywhere, whatever else goes in, if these inputs are; see `Trial`."""
        floats = [name for name in names if self.dtypes[name].startswith("float")]
        left = {name for name in self.explorer.foreign.outputs if self.dtypes[name].startswith("float")}
        for _ in range(_TRIES if floats else 0):
            feeds = self._random_feeds() | {name: np.zeros(self._single(name), self.dtypes[name]) for name in floats}
            result = self.explorer.foreign.run(feeds)
            left = {name for name in left if not result[name].any()}
        return left if floats else ()

    def is_shifted(self, name: str, output: str) -> bool:
        """Whether an element of the input comes out at another place; see `Trial`."""
        feeds = self._random_feeds()
        before, after = feeds[name].ravel(), self.explorer.foreign.run(feeds)[output].ravel()
        if before.dtype.kind != "f" or before.size != after.size:
            return False
        places = {value: place for place, value in enumerate(before.tolist())}
        return any(places.get(value, place) != place for place, value in enumerate(after.tolist()))

    def _random_feeds(self) -> Arrays:
        """Return one step of one row, states random too."""
        return {
            name: random_array(feed.dtype.name, feed.shape, self.rng) if feed.dtype.kind == "f" else feed
            for name, feed in self._feeds(1, 1).items()
        }

    def _single(self, name: str) -> tuple[int, ...]:
        return sized(self.axes[name], 1, 1 + self.overlaps.get(name, 0))

    # ---- what is asked, and what is refused

    def _refuse_grown(self) -> None:
        """Refuse an input that the graph moves to an output which is longer along an axis that the file leaves free."""
        for item in self.explorer.inputs:
            for output in self.explorer.foreign.outputs:
                is_moved = self.explorer.evidence.links[item.name, output] is Link.MOVED
                if is_moved and self._is_longer(item, self.axes[output]):
                    raise grows(item.name, output)

    def _refuse_fixed_rows(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Refuse a batch that the file has free in its data, and fixed at 1 in a state that comes out with it."""
        for name in self._names():
            wanted = {(self.dtypes[name], opened) for opened in _opened(self.axes[name])}
            outputs = [each for each in self.explorer.foreign.outputs if (self.dtypes[each], self.axes[each]) in wanted]
            is_likely = name in self.likely or not candidates[name]
            if BATCH not in self.axes[name] and is_likely and outputs and self.explorer.roles.may_be_state(name):
                shapes = f"{list(self.axes[name])} and comes out as {outputs[0]} {list(self.axes[outputs[0]])}"
                raise RejectedError(2, f"{name} is {shapes}: its rows are fixed at 1, say so of the data too, --shape")

    def _without_state(self) -> RejectedError:
        said = only_said(self.explorer.roles)
        return RejectedError(4, said) if said else without_state(self.explorer.flow, self.explorer.inputs)

    def _refuse_unsaid(self, sides: Sequence[str], lengths: Sequence[str]) -> None:
        """A single number that is neither data nor a state is a setting."""
        settings = [
            name
            for name in sides
            if BATCH not in self.axes[name]
            and math.prod(sized(self.axes[name], 1, 1)) == 1
            and name not in self.explorer.roles.data
        ]
        if len(lengths) > 1:
            settings += lengths
        if settings and len(settings) < len([name for name in self._names() if name not in self.likely]):
            name = settings[0]
            raise RejectedError(5, unsaid_setting(name, self.dtypes[name], self.axes[name]))

    def _refuse_possible_states(self, data: Sequence[str]) -> None:
        """Ask about data that could be a state where contexts are all that is kept, whatever the axes are."""
        kinds = {name: (self.dtypes[name], self.axes[name]) for name in (*data, *self.explorer.foreign.outputs)}
        possible = [
            (name, output)
            for name in data
            if self.explorer.roles.may_be_state(name)
            for output in self.explorer.foreign.outputs
            if kinds[name] == kinds[output]
        ]
        if possible:
            name, output = max(possible, key=self.explorer.evidence.score)
            raise RejectedError(
                3, f"{name} may be a state beside the contexts: say --state {name}:{output}, or --data {name}"
            )

    # ---- what was found

    def _names(self) -> list[str]:
        return [item.name for item in self.explorer.inputs]

    def _described(
        self,
        data: Sequence[str],
        pairs: Mapping[str, str],
        lengths: str | None,
        reasons: Mapping[str, str],
        *,
        is_frame: bool,
    ) -> Found:
        outputs = [name for name in self.explorer.foreign.outputs if name not in pairs.values()]
        if not outputs:
            raise RejectedError(
                2, "every output is a state: there is nothing to tell a caller; say which inputs are data, --data NAME"
            )
        if not pairs:
            self._refuse_possible_states(data)
        rows = [BATCH in self.axes[name] for name in pairs if not self._is_count(name)]
        if rows and any(BATCH in self.axes[name] for name in data) != all(rows):
            raise RejectedError(
                1, "a free axis of the input is no axis of the states: say which is the batch, --batch-axis"
            )
        return Found(
            model=self.explorer.model,
            data=tuple(self._spec(name) for name in data),
            states=tuple(self._state(a, b) for a, b in pairs.items()),
            outputs=tuple(self._spec(name) for name in outputs),
            is_frame=is_frame,
            lengths=lengths,
            contexts=self.explorer.request.contexts,
            initial={name: first for name, first in self.explorer.initial.items() if np.ptp(first) != 0},
            notes=tuple(
                f"{a} is handed on as it came: every session keeps its first value (--initial says it; or --constant)"
                for a in self.explorer.flow.handed_on()
                if a in pairs
            ),
            reasons=reasons,
        )

    def _is_count(self, name: str) -> bool:
        """Whether a state is one number for all rows, as a count of steps is: then rows run one by one."""
        return all(axis == 1 for axis in self.axes[name])

    def _spec(self, name: str) -> TensorSpec:
        return TensorSpec.model_validate({"name": name, "dtype": self.dtypes[name], "axes": self.axes[name]})

    def _state(self, name: str, output: str) -> StateSpec:
        first = self.explorer.initial.get(name)
        value = 0.0 if first is None or np.ptp(first) != 0 or not first.size else float(first.flat[0])
        known = {"dtype": self.dtypes[name], "axes": self.axes[name], "initial": value}
        return StateSpec.model_validate({"input": name, "output": output, **known})

    def _example(self, reason: str) -> str:
        """Return how to say other sizes, after the reason to do so; nothing where no input leaves any open."""
        told = example(item for item in self.explorer.inputs if item.name not in self.likely)
        return f"{reason}: {told}" if told else ""


def _opened(axes: Axes) -> Iterator[Axes]:
    """Yield the axes with one that is 1 as the batch."""
    for place, axis in enumerate(axes):
        if axis == 1:
            yield (*axes[:place], BATCH, *axes[place + 1 :])
