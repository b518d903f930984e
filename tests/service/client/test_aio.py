"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tidegate import errors
from tidegate.api import GeneratedToken, GenerationDone, Input, InputValue, SessionRequest
from tidegate.client import AsyncClient, Retry


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address, timeout=60) as client:
        yield client


async def test_models(client: AsyncClient) -> None:
    assert [model.version for model in await client.models()] == ["1", "2"]
    assert (await client.model("echo", "1")).version == "1"
    assert (await client.reload()).loaded == ["echo/3"]


async def test_predict(client: AsyncClient, service: FakeCore) -> None:
    result = await client.predict("echo", ["ab", [5, 6]], version="1", every_step=True)
    assert (result.version, [each.length for each in result.predictions]) == ("1", [2, 2])
    service.failures["echo"] = [errors.InvalidInputError("sequence 0: no", details={"sequence": "0"})]
    with pytest.raises(errors.InvalidInputError) as caught:
        await client.predict("echo", ["?"])
    assert caught.value.details == {"sequence": "0"}


async def test_generate(client: AsyncClient) -> None:
    events = [event async for event in client.generate("echo", "xy", max_tokens=1)]
    assert events == [GeneratedToken(0, "a", 3), GenerationDone("a", [0], "length", 3)]


async def test_leaving_a_generation_cancels_it(client: AsyncClient, service: FakeCore) -> None:
    service.is_holding = True
    events: Any = client.generate("echo", "xy")
    async with aclosing(events):
        assert await anext(events) == GeneratedToken(0, "a", 3)
    assert await service.cancelled.get() == "echo"


async def test_a_session_steps_with_its_position_and_closes(client: AsyncClient, service: FakeCore) -> None:
    async with client.open("echo", id="mine", durable=True) as session:
        assert (await session.step("ab")).position == 2
        assert (await session.step(tokens=[7])).position == 3
        assert (await session.step(values=[[1.0, 2.0]])).position == 4
        assert [each.id async for each in client.sessions()] == ["mine"]
        assert (await session.refresh()).position == 4
    assert service.opened == [SessionRequest("echo", id="mine", durable=True)]
    assert [call.position for call in service.steps] == [0, 2, 3]
    assert service.sessions == {}


async def test_settings_go_with_what_they_are_given_for(client: AsyncClient, service: FakeCore) -> None:
    values = (InputValue.of("limit", 6.0), InputValue.of("speaker", [1.0, 2.0]))
    own = Input(tokens=[1], inputs=(InputValue.of("limit", 3.0),))
    given: dict[str, Any] = {"speaker": np.array([1, 2]), "limit": 6}
    await client.predict("echo", ["a", own], inputs=given)
    async with client.open("echo", inputs=given) as session, session.stream() as stream:
        await session.step("a", inputs=given)
        await stream.step("b", inputs={"limit": 6})
        await session.step("c")
        assert [event async for event in session.generate(inputs=given, max_tokens=1)]
    assert service.opened == [SessionRequest("echo", inputs=values)]
    assert [call.input.inputs for call in service.steps] == [values, values[:1], ()]
    assert [call.prompt for call in service.generations] == [Input(inputs=values)]
    assert [source.inputs for _, _, sources, _ in service.predicted for source in sources] == [values, own.inputs]


async def test_an_opening_can_be_awaited(client: AsyncClient, service: FakeCore) -> None:
    session = await client.open("echo", id="mine")
    assert list(service.sessions) == ["mine"]
    await session.close()
    await session.close()
    assert service.sessions == {}


async def test_an_error_in_the_block_is_not_hidden_by_one_of_closing(client: AsyncClient, service: FakeCore) -> None:
    async def fail() -> None:
        async with client.open("echo", id="mine"):
            service.failures["mine"] = [errors.InternalError("closing failed")]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_generating_moves_the_session(client: AsyncClient, service: FakeCore) -> None:
    service.add_sessions("a")
    session = await client.session("a")
    assert [event.position async for event in session.generate("xy", max_tokens=2)] == [3, 4, 4]
    assert session.position == 4


async def test_a_session_stream_steps_and_overlaps(client: AsyncClient, service: FakeCore) -> None:
    service.add_sessions("a")
    session = await client.session("a")
    async with session.stream() as stream:
        assert (await stream.step("ab")).position == 2
        for token in (5, 6):
            await stream.send(tokens=[token])
        with pytest.raises(RuntimeError, match="2 replies are in flight"):
            await stream.step("x")
        assert [(await stream.receive()).position for _ in range(2)] == [3, 4]
        service.failures["a"] = [errors.InvalidInputError("no such character")]
        with pytest.raises(errors.InvalidInputError):
            await stream.step("x")
        assert (await stream.step("x")).position == 5
    assert session.position == 5


async def test_a_column_stream_steps_many_sessions(client: AsyncClient, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    async with client.stream() as stream:
        attached = await stream.attach([await client.session("a"), "b"], first_lane=4)
        assert (attached.first_lane, attached.positions, attached.errors) == (4, [0, 0], {})
        result = await stream.step([4, 5], tokens=np.array([5, 6, 7]), lengths=[1, 2], every_step=True)
        assert (result.lanes, result.positions, result.counts) == ([4, 5], [1, 2], [1, 2])
        assert result.ids is not None
        assert result.ids.tolist() == [[5], [6], [7]]


async def test_a_drained_stream_says_so_where_nothing_is_tried_again(service: FakeCore) -> None:
    service.add_sessions("a")
    server = GrpcServer(service, "127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{server.port}", retry=Retry(attempts=1)) as client:
        session = await client.session("a")
        async with session.stream() as stream:
            await stream.step("x")
            await server.drain()
            # A step that crosses the end of the stream learns only that it broke.
            with pytest.raises(errors.UnavailableError) as caught:
                await stream.step("x")
            assert caught.value.reason in {"DRAINING", "STREAM_BROKEN"}
    await server.stop()


async def test_a_text_by_itself_is_one_and_objects_say_what_they_are(client: AsyncClient, address: str) -> None:
    assert [each.length for each in (await client.predict("echo", "ROMEO:")).predictions] == [6]
    assert repr(client) == f"AsyncClient('{address}')"
    async with client.open("echo", id="mine") as session, session.stream() as steps, client.stream() as columns:
        assert [fork.id for fork in await session.fork("abc")] == ["abc"]
        assert list((await columns.attach(session)).positions) == [0]
        assert repr(session) == "<AsyncSession mine of echo/2 at 0>"
        assert repr(steps) == "<AsyncSessionStream of mine at 0, 0 in flight>"
        assert repr(columns) == f"<AsyncColumnStream to {address}, 0 in flight>"
        with pytest.raises(errors.InvalidInputError, match="timeout must be a number"):
            await session.step("a", timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError, match="session must be a session's id"):
        await client.session("Gänge")
