"""Requests and replies that are passed on between workers arrive as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidegate.transports.oip.messages import decode_reply, decode_request, encode_reply, encode_request
from tidegate.transports.oip.requests import InferReply, InferRequest, Options
from tidegate.transports.oip.tensors import NamedTensor

names = st.text(min_size=1, max_size=8)
counts = st.integers(0, 2**64 - 1)
sequences = st.integers(1, 2**64 - 1) | names
options = st.builds(
    Options,
    sequence=sequences,
    start=st.booleans(),
    end=st.booleans(),
    timeout=st.none(),
    priority=counts,
    position=st.none() | counts,
    binary_output=st.just(False),
)
ARRAYS = [np.arange(6, dtype=dtype).reshape(1, 3, 2) for dtype in ("float32", "float16", "int64", "uint8")]
tensors = st.lists(st.builds(NamedTensor, names, st.sampled_from(ARRAYS)), max_size=3)


def same(one: Any, other: Any) -> bool:
    return [name for name, _ in one] == [name for name, _ in other] and all(
        mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
        for (_, mine), (_, theirs) in zip(one, other, strict=True)
    )


@given(st.builds(InferRequest, names, names, names, options, tensors, st.lists(names, max_size=3)))
def test_requests(request: InferRequest) -> None:
    found = decode_request(encode_request(request))
    assert found._replace(inputs=[]) == request._replace(inputs=[])
    assert same(found.inputs, request.inputs)


@given(st.builds(InferReply, names, names, names, tensors, st.none() | st.integers(0, 2**63 - 1)))
def test_replies(reply: InferReply) -> None:
    found = decode_reply(encode_reply(reply))
    assert found._replace(outputs=[]) == reply._replace(outputs=[])
    assert same(found.outputs, reply.outputs)
