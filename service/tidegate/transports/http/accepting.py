"""What a client accepts: RFC 9110's lists of names with weights, of media types and of codings alike.

Names and parameters are compared without case. What is malformed is passed over: a client that says nothing useful
gets what a client gets that says nothing.
"""

from __future__ import annotations

import re

_WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", re.IGNORECASE)


def weights(header: str) -> dict[str, float]:
    """Return the weight of each name in the header, 1 where none is given; several fields of it are joined by commas.

    Parameters of a media type narrow it; nothing here has any, so they are not looked at.
    """
    found: dict[str, float] = {}
    for part in filter(str.strip, header.split(",")):
        name, *parameters = part.split(";")
        matches = [match for parameter in parameters if (match := _WEIGHT.fullmatch(parameter))]
        found.setdefault(name.strip().lower(), min(1.0, float(matches[-1][1])) if matches else 1.0)
    return found


def weight_of_type(accepted: dict[str, float], media_type: str) -> float:
    """Return the weight of a media type: its own, else that of all of its kind, else that of all; 0: not accepted."""
    kind = media_type.partition("/")[0]
    for name in (media_type, f"{kind}/*", "*/*"):
        if name in accepted:
            return accepted[name]
    return 0.0
