"""What a module decides by the length of a sequence, in Python and so not in its graph, is found in export's parity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor, nn

from tests.service.test_reach import Streaming
from tidegate.proof import ABSOLUTE
from tidegate.replay import GraphRunner, Result, Tensors
from tidegate_export.errors import ExportError
from tidegate_export.lengths import check_lengths, literals

LATE = 5120


class Limited(nn.Module):
    window = 3100

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.warmup = 777

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) > LATE:
            return x
        return self.hidden(x) if x.size(1) in {4000, 4001} else self.later(x)

    def later(self, x: Tensor) -> Tensor:
        return x if x.size(1) > 9000 else self.hidden(x)


def compared(decide: Callable[[int], bool], module: nn.Module | None = None) -> list[float]:
    """Compare a GRU's graph with itself, but for the lengths that `decide` picks: there its outputs are zero."""
    net = Streaming()
    graph, about = net.done(net.plain)
    runner = GraphRunner(graph, about)

    def run(inputs: Tensors) -> Result:
        steps = inputs["x"].shape[1]
        found = runner.walk(inputs, [steps])
        return Result({"y": found.outputs["y"] * (not decide(steps))}, found.states)

    return check_lengths(module or nn.Identity(), graph, runner, run, np.random.default_rng(0), ABSOLUTE)


def test_what_is_the_same_at_all_lengths_passes() -> None:
    assert max(compared(lambda _: False)) <= ABSOLUTE


@pytest.mark.parametrize("limit", [1, 3, 40, 100, 999, 2048])
def test_a_limit_of_the_length_is_found(limit: int) -> None:
    with pytest.raises(ExportError, match="decide by the length"):
        compared(lambda steps: steps > limit)


def test_a_single_length_that_the_code_names_is_found() -> None:
    for length in (778, 3101, 4001, 5121, 9001):
        with pytest.raises(ExportError, match=f"a sequence of {length:,} steps"):
            compared(length.__eq__, Limited())


def test_whole_numbers_of_a_modules_own_code_are_read_and_no_others() -> None:
    assert literals(nn.Sequential(nn.Linear(3000, 12), nn.GRU(12, 7))) == set()
    found = literals(nn.Sequential(Limited()))
    assert {777, 3100, LATE, 4000, 4001, 9000} <= found
