"""Whether a dashboard's JSON is what Grafana's published classes say it may be.

The classes read what they know, pass by the rest, and check no types. So the JSON is read, written again and compared:
what is unknown, or has another name, is missing then. And what was read is held against the classes' annotations.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard

UNIONS = (typing.Union, types.UnionType)


def faults(document: dict[str, Any]) -> list[str]:
    """Return where a dashboard is not as it should be."""
    register_default_plugins()
    read = dashboard.Dashboard.from_json(document)
    again = json.loads(json.dumps(read, cls=JSONEncoder))
    return [*_differences(document, again, "dashboard"), *_misfits(read, dashboard.Dashboard, "dashboard")]


def _differences(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        # What was read may have more: defaults.
        yield from (f"{where}.{key} is unknown" for key in ours.keys() - theirs.keys())
        for key in ours.keys() & theirs.keys():
            yield from _differences(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{where}[{index}]")
    elif ours != theirs:
        yield f"{where} is {ours!r}, read as {theirs!r}"


def _misfits(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Where ``value`` and what is in it is not of the annotated type."""
    if isinstance(value, dict) and hasattr(hint, "from_json"):
        # Some lists are left as they were read.
        value = hint.from_json(value)
    if not _fits(value, hint):
        yield f"{where} is {value!r}, not {hint}"
    elif isinstance(value, list):
        item = (typing.get_args(_matching(value, hint)) or (Any,))[0]
        for index, each in enumerate(value):
            yield from _misfits(each, item, f"{where}[{index}]")
    elif isinstance(value, dict):
        item = (typing.get_args(_matching(value, hint)) or (Any, Any))[1]
        for key, each in value.items():
            yield from _misfits(each, item, f"{where}.{key}")
    elif hasattr(value, "to_json"):
        module = vars(inspect.getmodule(type(value)))
        for name, each in typing.get_type_hints(type(value), module).items():
            yield from _misfits(getattr(value, name), each, f"{where}.{name}")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint in (Any, object):
        return True
    return _is_of(value, origin or hint)


def _is_of(value: Any, kind: type) -> bool:
    if kind is variants.Dataquery:
        return hasattr(value, "expr")
    if issubclass(kind, Enum):
        return value in [each.value for each in kind]
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _matching(value: Any, hint: Any) -> Any:
    """The part of a union that the value fits."""
    if typing.get_origin(hint) in UNIONS:
        return next(each for each in typing.get_args(hint) if _fits(value, each))
    return hint
