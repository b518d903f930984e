"""Scenarios for tritonclient against a running server: `stock.py SCENARIO HTTP GRPC DATA`.

Runs in the clients' own environment and knows nothing of tidegate. DATA is an .npz file with `tokens` [rows, steps]
and, of each row as one sequence, `logits` [rows, steps, vocabulary] and `surprise` [rows, steps]. A scenario that
returns has passed.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

MODEL = "tiny"


class Data:
    def __init__(self, file: str) -> None:
        arrays = np.load(file)
        self.tokens, self.logits, self.surprise = arrays["tokens"], arrays["logits"], arrays["surprise"]
        self.rows, self.steps = self.tokens.shape

    def check(self, result: Any, rows: slice, steps: slice) -> None:
        for name in ("logits", "surprise"):
            wanted = getattr(self, name)[rows, steps]
            np.testing.assert_allclose(result.as_numpy(name), wanted, rtol=1e-4, atol=1e-5)

    def inputs(self, module: Any, rows: slice, steps: slice, **how: Any) -> list[Any]:
        tokens = np.ascontiguousarray(self.tokens[rows, steps])
        given = module.InferInput("tokens", list(tokens.shape), "INT64")
        given.set_data_from_numpy(tokens, **how)
        return [given]


def flags(data: Data, step: int) -> dict[str, bool]:
    return {"sequence_start": step == 0, "sequence_end": step == data.steps - 1}


ALL = slice(None)


def refusal(call: Callable[[], Any]) -> str:
    """What the client is told by a call that must fail."""
    try:
        call()
    except InferenceServerException as error:
        return str(error.message())
    raise AssertionError("an error was due")


def told(client: Any, *, is_http: bool) -> None:
    """Everything that a client asks beside inference."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert not client.is_model_ready("nobody")
    form: dict[str, Any] = {} if is_http else {"as_json": True}
    assert "sequence(string_id)" in client.get_server_metadata(**form)["extensions"]
    assert [each["name"] for each in client.get_model_metadata(MODEL, **form)["inputs"]] == ["tokens"]
    config = client.get_model_config(MODEL, **form)
    config = config if is_http else config["config"]
    assert "sequence_batching" in config
    statistics = client.get_inference_statistics(MODEL, **form)["model_stats"][0]
    assert statistics["name"] == MODEL
    index = client.get_model_repository_index(**form)
    assert MODEL in {each["name"] for each in (index if is_http else index["models"])}
    client.load_model(MODEL)
    for call in (partial(client.unload_model, MODEL), partial(client.load_model, "nobody")):
        assert refusal(call)


def sync_client(data: Data, client: Any, module: Any, *, is_http: bool) -> None:
    told(client, is_http=is_http)
    result = client.infer(MODEL, data.inputs(module, ALL, ALL), request_id="whole")
    data.check(result, ALL, ALL)
    assert (result.get_response()["id"] if is_http else result.get_response().id) == "whole"
    for row, sequence in enumerate((7, "7")):
        for step in range(data.steps):
            one = slice(row, row + 1), slice(step, step + 1)
            options: dict[str, Any] = {"sequence_id": sequence, "priority": 1, "timeout": 60_000_000}
            data.check(client.infer(MODEL, data.inputs(module, *one), **options, **flags(data, step)), *one)
    outputs = [module.InferRequestedOutput("surprise")]
    result = client.infer(MODEL, data.inputs(module, ALL, ALL), outputs=outputs)
    assert result.as_numpy("logits") is None
    np.testing.assert_allclose(result.as_numpy("surprise"), data.surprise, rtol=1e-4, atol=1e-5)
    unknown = partial(client.infer, MODEL, data.inputs(module, slice(0, 1), ALL), sequence_id=99)
    assert "must specify the START flag" in refusal(unknown)
    waiting = (
        [client.async_infer(MODEL, data.inputs(module, slice(row, row + 1), ALL)) for row in range(data.rows)]
        if is_http
        else []
    )
    for row, each in enumerate(waiting):
        data.check(each.get_result(), slice(row, row + 1), ALL)


def http(data: Data, url: str, _: str) -> None:
    with triton_http.InferenceServerClient(url, concurrency=4) as client:
        sync_client(data, client, triton_http, is_http=True)
        for is_binary in (True, False):
            inputs = data.inputs(triton_http, ALL, ALL, binary_data=is_binary)
            names = ("logits", "surprise")
            for reply in (True, False):
                outputs = [triton_http.InferRequestedOutput(name, binary_data=reply) for name in names]
                data.check(client.infer(MODEL, inputs, outputs=outputs), ALL, ALL)
        for algorithm in ("gzip", "deflate"):
            compressed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
            data.check(client.infer(MODEL, data.inputs(triton_http, ALL, ALL), **compressed), ALL, ALL)


def grpc(data: Data, _: str, url: str) -> None:
    with triton_grpc.InferenceServerClient(url) as client:
        sync_client(data, client, triton_grpc, is_http=False)
        for algorithm in ("gzip", "deflate"):
            data.check(
                client.infer(MODEL, data.inputs(triton_grpc, ALL, ALL), compression_algorithm=algorithm), ALL, ALL
            )
        answers: queue.Queue[Any] = queue.Queue()
        client.async_infer(
            MODEL, data.inputs(triton_grpc, ALL, ALL), callback=lambda result, error: answers.put(error or result)
        )
        data.check(answers.get(timeout=30), ALL, ALL)


async def both_aio(data: Data, client: Any, module: Any) -> None:
    assert await client.is_server_ready()
    assert await client.is_model_ready(MODEL)
    assert (await client.get_model_metadata(MODEL)) is not None
    data.check(await client.infer(MODEL, data.inputs(module, ALL, ALL)), ALL, ALL)

    async def sequence(row: int) -> None:
        for step in range(data.steps):
            one = slice(row, row + 1), slice(step, step + 1)
            options: dict[str, Any] = {"sequence_id": 100 + row}
            data.check(await client.infer(MODEL, data.inputs(module, *one), **options, **flags(data, step)), *one)

    await asyncio.gather(*map(sequence, range(data.rows)))


def http_aio(data: Data, url: str, _: str) -> None:
    async def run() -> None:
        async with triton_http_aio.InferenceServerClient(url) as client:
            await both_aio(data, client, triton_http_aio)
            compressed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
            data.check(await client.infer(MODEL, data.inputs(triton_http_aio, ALL, ALL), **compressed), ALL, ALL)

    asyncio.run(run())


def grpc_aio(data: Data, _: str, url: str) -> None:
    async def run() -> None:
        async with triton_grpc_aio.InferenceServerClient(url) as client:
            await both_aio(data, client, triton_grpc_aio)

            async def requests() -> Any:
                for step in range(data.steps):
                    inputs = data.inputs(triton_grpc_aio, slice(0, 1), slice(step, step + 1))
                    yield {"model_name": MODEL, "inputs": inputs, "sequence_id": 5, **flags(data, step)}

            step = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                data.check(result, slice(0, 1), slice(step, step + 1))
                step += 1
            assert step == data.steps

    asyncio.run(run())


def stream(data: Data, _: str, url: str) -> None:
    """Several sequences interleaved on one stream, all steps in flight at once; an error in between ends nothing."""
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for step in range(data.steps):
            for row in range(data.rows):
                inputs = data.inputs(triton_grpc, slice(row, row + 1), slice(step, step + 1))
                client.async_stream_infer(
                    MODEL, inputs, request_id=f"{row} {step}", sequence_id=1000 + row, **flags(data, step)
                )
            client.async_stream_infer(MODEL, inputs, request_id="unknown", sequence_id=31)
        for step in range(data.steps):
            for row in range(data.rows):
                result, error = answers.get(timeout=30)
                assert error is None, error
                assert result.get_response().id == f"{row} {step}"
                data.check(result, slice(row, row + 1), slice(step, step + 1))
            result, error = answers.get(timeout=30)
            assert "must specify the START flag" in error.message()
        client.stop_stream()


def across(data: Data, http_url: str, grpc_url: str) -> None:
    """One sequence whose steps come from two clients over two protocols in turn."""
    with triton_http.InferenceServerClient(http_url) as one, triton_grpc.InferenceServerClient(grpc_url) as two:
        for step in range(data.steps):
            client, module = ((one, triton_http), (two, triton_grpc))[step % 2]
            cut = slice(0, 1), slice(step, step + 1)
            result = client.infer(MODEL, data.inputs(module, *cut), sequence_id="shared", **flags(data, step))
            data.check(result, *cut)


def batch(data: Data, http_url: str, grpc_url: str) -> None:
    """A sequence of as many rows as there are."""
    with triton_grpc.InferenceServerClient(grpc_url) as client:
        for step in range(data.steps):
            cut = ALL, slice(step, step + 1)
            result = client.infer(MODEL, data.inputs(triton_grpc, *cut), sequence_id=77, **flags(data, step))
            data.check(result, *cut)


SCENARIOS = {each.__name__: each for each in (http, grpc, http_aio, grpc_aio, stream, across, batch)}

if __name__ == "__main__":
    scenario, http_url, grpc_url, file = sys.argv[1:]
    SCENARIOS[scenario](Data(file), http_url, grpc_url)
