"""Windows: streams are contiguous, every batch follows from its step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate_models.errors import TrainingInputError
from tidegate_models.windows import Windows


def counting(length: int, streams: int, window: int, seed: int = 0) -> Windows:
    numbers = torch.arange(length + 1)
    return Windows.batchify(numbers[:-1], numbers[1:], streams=streams, window=window, seed=seed)


@given(st.integers(20, 200), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_windows_of_an_epoch_follow_each_other(length: int, streams: int, window: int, seed: int) -> None:
    windows = counting(length, streams, window, seed)
    for step in range(3 * windows.windows_per_epoch):
        batch = windows.at(step)
        assert batch.inputs.shape == batch.targets.shape == (streams, window)
        assert torch.equal(batch.inputs + 1, batch.targets)
        assert batch.is_first == (step % windows.windows_per_epoch == 0)
        if not batch.is_first:
            assert torch.equal(windows.at(step - 1).inputs[:, -1] + 1, batch.inputs[:, 0])


def test_a_batch_depends_on_its_step_and_seed_alone() -> None:
    first, second = counting(100, 2, 7, seed=3), counting(100, 2, 7, seed=3)
    first.at(0)
    assert torch.equal(first.at(40).inputs, second.at(40).inputs)


def test_epochs_begin_at_different_offsets() -> None:
    windows = counting(400, 2, 20)
    starts = {int(windows.at(epoch * windows.windows_per_epoch).inputs[0, 0]) for epoch in range(20)}
    assert len(starts) > 5


def test_shards_are_a_partition_of_the_streams() -> None:
    windows = counting(120, 4, 5)
    rows = torch.cat([windows.shard(rank, 2).at(1).inputs for rank in range(2)])
    assert sorted(rows[:, 0].tolist()) == sorted(windows.at(1).inputs[:, 0].tolist())


def test_streams_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(TrainingInputError, match="3 streams cannot be shared evenly by 2 devices"):
        counting(120, 3, 5).shard(0, 2)


def test_too_little_data_says_how_much_is_needed() -> None:
    with pytest.raises(TrainingInputError, match=r"too little data: 30 .*at least 32"):
        counting(30, 4, 8)
