"""The rows of the target table, one module each, in the table's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.measure import Plan, Row
from bench.rows.columnar import columnar_256
from bench.rows.fairness import fairness
from bench.rows.generation import generation_64
from bench.rows.grpc_stream import grpc_stream_64
from bench.rows.grpc_unary import grpc_unary_64
from bench.rows.http_step import http_step_64
from bench.rows.int8 import int8
from bench.rows.many_sessions import sessions_100k
from bench.rows.oip import oip_infer_64, oip_stream_64
from bench.rows.predict import predict_64_ragged
from bench.rows.single import single_session
from bench.rows.start import start
from bench.rows.websocket import websocket_64

ROWS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "grpc-stream-64": grpc_stream_64,
    "grpc-unary-64": grpc_unary_64,
    "oip-infer-64": oip_infer_64,
    "oip-stream-64": oip_stream_64,
    "columnar-256": columnar_256,
    "http-step-64": http_step_64,
    "websocket-64": websocket_64,
    "predict-64-ragged": predict_64_ragged,
    "single-session": single_session,
    "fairness": fairness,
    "sessions-100k": sessions_100k,
    "generation-64": generation_64,
    "start": start,
    "int8": int8,
}
"""What can be asked for by name; some give two lines of the table."""
