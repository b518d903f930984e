"""Slots of state: what is scattered is gathered, and nobody holds another's slot."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bundle import Axis, StateSpec, TensorSpec
from tidegate.engine.arena import INITIAL, Arena, Budget, Plane

AXES: dict[str, tuple[Axis, ...]] = {
    "first": ("batch", 2, 3),
    "second": (2, "batch", 3),
    "third": (2, 3, "batch"),
    "none": (2, 3),
}


def plane(batch: str, initial: float = 0.0, dtype: Literal["float32", "float16"] = "float32") -> Plane:
    return Plane.of_state(StateSpec(input="in", output="out", dtype=dtype, axes=AXES[batch], initial=initial))


def slots(*indices: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array(indices, dtype=np.intp)


@given(
    kinds=st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=3),
    order=st.permutations(range(1, 9)),
    count=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_gather_gives_back_what_scatter_wrote(kinds: list[str], order: list[int], count: int, seed: int) -> None:
    planes = [plane(kind) for kind in kinds]
    arena = Arena(planes, Budget(1 << 12))
    for _ in range(8):
        arena.allocate()
    rng = np.random.default_rng(seed)
    chosen, others = order[:count], order[count:]
    before = arena.gather(slots(INITIAL, *others), len(planes))
    shapes = [(*p.row_shape[: p.slot_axis], count, *p.row_shape[p.slot_axis :]) for p in planes]
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    arena.scatter(slots(*chosen), values)
    for wrote, found in zip(values, arena.gather(slots(*chosen), len(planes)), strict=True):
        np.testing.assert_array_equal(wrote, found)
    for was, found in zip(before, arena.gather(slots(INITIAL, *others), len(planes)), strict=True):
        np.testing.assert_array_equal(was, found)


@pytest.mark.parametrize("kind", sorted(AXES))
@pytest.mark.parametrize("step", [1, -1, 2])
def test_many_slots_that_lie_side_by_side_are_slots_as_any(kind: str, step: int) -> None:
    arena = Arena([plane(kind)], Budget(1 << 16))
    chosen = np.arange(3, 203)[::step]
    (before,) = arena.gather(np.arange(300), 1)
    shape = list(before.shape)
    shape[plane(kind).slot_axis] = len(chosen)
    wrote = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    arena.scatter(chosen, [wrote])
    for where in (chosen, chosen[::-1]):
        found = np.moveaxis(arena.gather(where, 1)[0], plane(kind).slot_axis, 0)
        expected = np.moveaxis(wrote, plane(kind).slot_axis, 0)
        np.testing.assert_array_equal(found, expected if where is chosen else expected[::-1])
    others = np.setdiff1d(np.arange(300), chosen)
    np.testing.assert_array_equal(arena.gather(others, 1)[0], before.take(others, axis=plane(kind).slot_axis))
    (view,) = arena.gather(chosen, 1)
    view[:] = 0
    np.testing.assert_array_equal(arena.gather(chosen, 1)[0], wrote)


@pytest.mark.parametrize("kind", sorted(AXES))
def test_the_initial_state_is_what_the_manifest_says_at_every_row(kind: str) -> None:
    arena = Arena([plane(kind, initial=0.5)], Budget(1000))
    (state,) = arena.gather(slots(INITIAL, INITIAL), 1)
    assert state.shape == {"first": (2, 2, 3), "second": (2, 2, 3), "third": (2, 3, 2), "none": (2, 2, 3)}[kind]
    assert (state == 0.5).all()


def test_what_is_gathered_is_a_copy() -> None:
    arena = Arena([plane("second")], Budget(1000))
    slot = arena.allocate()
    arena.scatter(slots(slot), [np.ones((2, 1, 3), np.float32)])
    (mine,) = arena.gather(slots(slot), 1)
    mine[:] = 9
    assert (arena.read(slot, 0) == 1).all()


@given(kinds=st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=3), rows=st.permutations(range(4)))
def test_select_takes_rows_as_gather_orders_them(kinds: list[str], rows: list[int]) -> None:
    planes = [plane(kind) for kind in kinds]
    arena = Arena(planes, Budget(1 << 12))
    held = [arena.allocate() for _ in range(4)]
    rng = np.random.default_rng(0)
    for slot in held:
        arena.scatter(slots(slot), [rng.standard_normal(p.reserve(1).shape).astype(np.float32) for p in planes])
    every = arena.gather(slots(*held), len(planes))
    chosen = rows[:2]
    for selected, gathered in zip(
        arena.select(slots(*chosen), every),
        arena.gather(slots(*(held[row] for row in chosen)), len(planes)),
        strict=True,
    ):
        np.testing.assert_array_equal(selected, gathered)


def test_an_output_is_kept_beside_the_state_and_gathered_only_on_demand() -> None:
    logits = TensorSpec(name="logits", dtype="float32", axes=("batch", "time", 5))
    arena = Arena([plane("second"), Plane.of_output(logits)], Budget(1000))
    slot = arena.allocate()
    arena.scatter(slots(slot), [np.ones((2, 1, 3), np.float32), np.full((1, 5), 3, np.float32)])
    assert len(arena.gather(slots(slot), 1)) == 1
    np.testing.assert_array_equal(arena.read(slot, 1), np.full(5, 3))
    assert arena.slot_bytes == 4 * (2 * 3 + 5)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_a_slot_is_never_handed_out_twice_and_the_lowest_comes_first(actions: list[int]) -> None:
    arena = Arena([plane("first")], Budget(10 * 24))
    held: list[int] = []
    for action in actions:
        if action % 3 and arena.can_allocate():
            slot = arena.allocate()
            assert slot not in held
            assert slot == min(set(range(1, 12)) - set(held))
            held.append(slot)
        elif held:
            arena.free(held.pop(action % len(held)))
        assert INITIAL not in held
        assert arena.num_used == len(held)
        assert arena.can_allocate() == (len(held) < 10)


def test_arenas_share_one_budget() -> None:
    budget = Budget(100)
    small, large = Arena([plane("first", dtype="float16")], budget), Arena([plane("first")], budget)
    first = [large.allocate() for _ in range(3)]
    assert (budget.used, large.can_allocate(2), small.can_allocate(2)) == (72, False, True)
    held = [small.allocate(), small.allocate()]
    assert (large.can_allocate(), small.can_allocate()) == (False, False)
    large.free(first[1])
    assert small.can_allocate(2)
    for slot in held:
        small.free(slot)
    assert budget.used == 48


def test_a_state_larger_than_the_budget_is_never_held() -> None:
    assert not Arena([plane("first")], Budget(23)).can_allocate()
