"""From a seed to a case: a graph of random blocks, wired at random, with or without a trap."""

from __future__ import annotations

from tests.search.blocks import FRAME_BLOCKS, TIME_BLOCKS, mixed, pointwise, scanned_cell, time_layer, within_frame
from tests.search.builder import Builder, Value
from tests.search.traps import LAST, TRAPS, either, spring
from tests.search.truth import Case

KINDS = ("frame", "time", "window", "lifted", "trap", "lifted trap")
_SHARES = (32, 25, 4, 12, 19, 8)


def make_case(seed: int, kind: str | None = None, trap: str | None = None) -> Case:
    """Return the case of a seed: the same one whenever it is asked. A kind or trap that is given is not drawn."""
    b = Builder(seed, is_frame=False)
    chosen = kind or b.random.choices(KINDS, _SHARES)[0]
    b.is_frame = chosen == "frame" or (chosen == "window" and b.chance(0.6))
    if chosen != "frame" and b.axis_names == "fixed" and b.chance(0.5):
        b.axis_names = "shared"
    if chosen == "window":
        return _window(b)
    _inputs(b)
    if chosen == "frame":
        return _frame(b)
    is_trapped = chosen.endswith("trap")
    drawn = b.random.choice(sorted(TRAPS)) if is_trapped else None
    return _time(b, chosen, (trap or drawn) if is_trapped else None)


def _inputs(b: Builder) -> None:
    kind = b.random.choices(("real", "tokens", "half"), (16, 3, 1))[0]
    b.add_data(b.random.choice((1, 2, 4, 6, 8)), kind)
    if kind == "real" and b.chance(0.3):
        b.add_data(b.random.choice((1, 3, 4, b.sources[0].width)))


def _source(b: Builder) -> Value:
    """Return what the next block reads: the newest tensor, an older one, or two together."""
    newest = b.pool[-1]
    match b.random.randrange(4):
        case 0:
            return b.random.choice(b.pool)
        case 1 if len(b.pool) > 1:
            return b.concat([newest, b.random.choice(b.pool[:-1])])
        case 2 if newest.width > 8:
            return b.linear(newest, 4)
        case _:
            return newest


def _window(b: Builder) -> Case:
    """A window over what is sent, its only memory or one beside others."""
    b.add_window()
    if b.chance(0.6):
        block = b.random.choice(FRAME_BLOCKS if b.is_frame else TIME_BLOCKS)
        b.pool.append(block(b, b.pool[-1]))
    _outputs(b)
    return b.finish("window")


def _frame(b: Builder) -> Case:
    if b.chance(0.1):
        b.pool.append(_tuned(b, b.pool[0]))
    if b.chance(0.04):
        b.pool.append(_narrowed(b, within_frame(b, _source(b))))
    if b.has_batch and b.axis_names != "fixed" and b.chance(0.04):
        b.pool.append(mixed(b, _source(b)))
    for number in range(b.random.choice((1, 1, 2, 3, 4))):
        block = pointwise if number and b.chance(0.3) else b.random.choice(FRAME_BLOCKS)
        b.pool.append(_narrowed(b, block(b, _source(b))))
    _outputs(b)
    return b.finish("frame")


def _tuned(b: Builder, x: Value) -> Value:
    """Apply a setting: a number that a caller must say once."""
    if b.chance(0.5):
        gain = b.add_setting(0.5)
        return Value(b.add("Mul", x.name, gain), x.width)
    rate = b.add_setting(b.random.choice((8000, 16000)))
    is_fast = b.add("Equal", rate, b.integers(16000))
    if b.chance(0.5):
        return either(b, x, is_fast)
    return Value(b.add("Where", is_fast, x.name, b.add("Neg", x.name)), x.width)


def _prepared(b: Builder, trap: str | None, *, is_lifted: bool) -> str | None:
    """Add what stands beside the sequence, now and then; return the trap, another where it does not fit."""
    if trap is None and b.has_batch and b.axis_names != "fixed" and b.chance(0.03):
        b.pool.append(mixed(b, _source(b)))
    if b.axis_names == "own" and not b.has_batch and trap == "growing":
        trap = "lag"
    if not is_lifted and b.has_batch and b.chance(0.05):
        b.pool.append(_with_vector(b))
    elif b.chance(0.06):
        b.wants_lengths = True
    return trap


def _time(b: Builder, kind: str, trap: str | None) -> Case:
    is_lifted = kind.startswith("lifted")
    trap = _prepared(b, trap, is_lifted=is_lifted)
    num = b.random.choice((1, 1, 2, 3))
    place = b.random.randrange(num) if trap not in LAST else num
    for number in range(num):
        if trap is not None and number == place:
            b.sprung = spring(b, trap, _source(b))
            b.pool.append(b.sprung)
        if number and b.chance(0.25):
            b.pool.append(pointwise(b, _source(b)))
        elif is_lifted:
            block = scanned_cell if b.chance(0.25) else time_layer
            b.pool.append(_narrowed(b, block(b, _source(b), is_lifted=True)))
        else:
            b.pool.append(_narrowed(b, b.random.choice(TIME_BLOCKS)(b, _source(b))))
    if is_lifted and b.chance(0.2) and trap is None:  # some of the states have tensors, others do not
        b.pool.append(scanned_cell(b, _source(b)))
    if trap is not None and trap in LAST:
        b.sprung = spring(b, trap, b.pool[-1])
        b.pool = [b.sprung]
    _outputs(b)
    return b.finish(kind if trap is None else f"trap: {trap}")


def _with_vector(b: Builder) -> Value:
    vector = b.add_vector(3)
    moved = b.linear(vector, b.pool[0].width)
    b.notes.append("vector")
    return Value(b.add("Add", b.pool[0].name, moved.name), moved.width)


def _narrowed(b: Builder, x: Value) -> Value:
    return b.linear(x, 6) if x.width > 24 else x


def _outputs(b: Builder) -> None:
    """Hand out a head, now and then a masked input, and others; a trap reaches the first."""
    is_last = b.trap is not None and b.trap.kind in LAST
    newest = b.pool[-1]
    if b.sprung is not None:
        newest = b.concat([newest, b.sprung] if newest != b.sprung else [newest])
    elif not b.states or b.chance(0.6):  # a layer without state tensors that reaches no output would be none
        newest = b.concat(b.pool[-4:])
    if not is_last and b.chance(0.85):  # else an input may be there that nothing reads
        newest = b.concat([newest, *b.sources[1:]])
    first = b.linear(newest, b.random.choice((1, 3, 4)))
    if b.chance(0.4) and not is_last and b.data[0].dtype == "float32" and not b.data[0].context:
        mask = b.add("Sigmoid", b.linear(newest, b.sources[0].width).name)
        b.add_output(Value(b.add("Mul", b.sources[0].name, mask), b.sources[0].width), b.data[0])
        if b.trap is not None or b.chance(0.5):
            b.add_output(first)
    else:
        b.add_output(first)
    if b.chance(0.3):
        b.add_output(b.linear(b.pool[-1], 2))
    if b.chance(0.1) and not is_last:  # a tensor as it is
        b.add_output(b.pool[-1])
