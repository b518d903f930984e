"""The blocking client. The server runs in the test's event loop, so the client's code runs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from tests.service.fake_core import FakeCore
from tidegate import errors
from tidegate.api import GeneratedToken, GenerationDone, Input, Sampling, SessionRequest, StepOptions
from tidegate.client import Client

In = Callable[[Callable[[Client], None]], Awaitable[None]]


@pytest.fixture
async def in_thread(address: str) -> AsyncIterator[In]:
    """Runs a function with a client in a thread."""
    client = Client(address, timeout=60)

    async def run(body: Callable[[Client], None]) -> None:
        await asyncio.to_thread(body, client)

    yield run
    await asyncio.to_thread(client.close)


async def test_models(in_thread: In) -> None:
    def body(client: Client) -> None:
        assert [model.version for model in client.models()] == ["1", "2"]
        assert client.model("echo").versions == ["1", "2"]
        assert client.model("echo", "1").version == "1"
        assert client.reload().refused[0].bundle == "broken/1"

    await in_thread(body)


async def test_predict_takes_texts_tokens_and_values(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        values = np.arange(6, dtype=np.float64).reshape(3, 2)
        result = client.predict("echo", ["ab", [5, 6], np.array([1, 2, 3]), values, [[0.5, 1.0]]], top=2)
        assert (result.model, result.version) == ("echo", "2")
        assert [each.length for each in result.predictions] == [2, 2, 3, 3, 1]
        second = result.predictions[1]
        assert second.next is not None
        assert [each.id for each in second.next[0]] == [6, 7]

    await in_thread(body)
    (_, version, sequences, options) = service.predicted[0]
    assert (version, options) == (None, StepOptions(2, every_step=False))
    assert sequences[:3] == [Input(text="ab"), Input(tokens=[5, 6]), Input(tokens=[1, 2, 3])]
    assert sequences[3].values is not None
    assert sequences[3].values.tolist() == [[0, 1], [2, 3], [4, 5]]


async def test_errors_are_the_core_s(in_thread: In, service: FakeCore) -> None:
    service.failures["echo"] = [errors.OverloadedError("full", reason="QUEUE_FULL", retry_after=2.0)]

    def body(client: Client) -> None:
        with pytest.raises(errors.OverloadedError, match="full") as caught:
            client.model("echo")
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 2.0)

    await in_thread(body)


async def test_generate(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        events = list(client.generate("echo", "xy", max_tokens=2, temperature=0, seed=3, stop=("q",)))
        assert events == [
            GeneratedToken(0, "a", 3),
            GeneratedToken(1, "b", 4),
            GenerationDone("ab", [0, 1], "length", 4),
        ]

    await in_thread(body)
    asked = service.generations[0]
    assert asked.sampling == Sampling(max_tokens=2, temperature=0, seed=3, stop=("q",))
    assert asked.prompt == Input(text="xy")


async def test_leaving_a_generation_cancels_it(in_thread: In, service: FakeCore) -> None:
    service.is_holding = True

    def body(client: Client) -> None:
        for event in client.generate("echo", "xy"):
            assert event == GeneratedToken(0, "a", 3)
            break

    await in_thread(body)
    assert await service.cancelled.get() == "echo"


async def test_a_session_steps_with_its_position_and_closes(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        with client.open("echo", id="mine", seed=4) as session:
            assert (session.id, session.position, session.info.state_bytes) == ("mine", 0, 128)
            assert session.step("ab").position == 2
            assert session.step(tokens=[7], top=2).prediction.next is not None
            assert session.step(values=[[1.0, 2.0]]).position == 4
            every = session.step(tokens=np.array([1, 2]), every_step=True).prediction
            assert every.surprise is not None
            assert every.surprise.steps == [5.0, 6.0]
            assert [each.id for each in client.sessions()] == ["mine"]

    await in_thread(body)
    assert service.opened == [SessionRequest("echo", id="mine", seed=4)]
    assert [call.position for call in service.steps] == [0, 2, 3, 4]
    assert service.sessions == {}


async def test_an_error_in_the_block_is_not_hidden_by_one_of_closing(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        with client.open("echo", id="mine"):
            service.failures["mine"] = [errors.InternalError("closing failed")]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_thread(body)


async def test_an_error_of_closing_is_told(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        session = client.open("echo", id="mine")
        service.failures["mine"] = [errors.InternalError("closing failed")]
        with pytest.raises(errors.InternalError), session:
            pass

    await in_thread(body)


async def test_a_known_session_is_found_with_its_position(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a", "b", "c")
    service.sessions["b"] = service.sessions["b"]._replace(position=9)

    def body(client: Client) -> None:
        session = client.session("b")
        assert session.step("x").position == 10
        assert [each.id for each in client.sessions()] == ["a", "b", "c"]
        with pytest.raises(errors.NotFoundError):
            client.session("missing")

    await in_thread(body)


async def test_generating_moves_the_session(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a")

    def body(client: Client) -> None:
        session = client.session("a")
        assert list(session.generate("xy", max_tokens=2))[-1].position == 4
        assert session.position == 4
        assert session.step("z").position == 5

    await in_thread(body)
    assert service.generations[0].position == 0
    assert service.steps[0].position == 4


async def test_a_generation_broken_off_leaves_the_position_unknown(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a")

    def body(client: Client) -> None:
        session = client.session("a")
        next(iter(session.generate(max_tokens=3)))
        assert not session.position
        told = session.step("z")
        assert session.position == told.position
        session.refresh()
        session.step("z")

    await in_thread(body)
    assert service.steps[0].position is None
    assert service.steps[1].position == service.sessions["a"].position - 1


async def test_a_conflict_tells_the_position(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a")

    def body(client: Client) -> None:
        session = client.session("a")
        service.sessions["a"] = service.sessions["a"]._replace(position=3)
        with pytest.raises(errors.PositionConflictError) as caught:
            session.step("x")
        assert caught.value.position == 3
        assert session.refresh().position == 3
        assert session.step("x").position == 4

    await in_thread(body)


async def test_a_session_stream_steps_and_overlaps(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a")

    def body(client: Client) -> None:
        session = client.session("a")
        with session.stream() as stream:
            assert stream.step("ab").position == 2
            assert session.position == 2
            for token in (5, 6):
                stream.send(tokens=[token], every_step=True)
            with pytest.raises(RuntimeError, match="2 replies are in flight"):
                stream.step("x")
            assert [stream.receive().position for _ in range(2)] == [3, 4]
            service.failures["a"] = [errors.InvalidInputError("no such character")]
            with pytest.raises(errors.InvalidInputError):
                stream.step("x")
            assert stream.step("x").position == 5

    await in_thread(body)
    assert [call.position for call in service.steps] == [0, 2, 3, 4, 4]


async def test_a_column_stream_steps_many_sessions(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a", "b", "c")

    def body(client: Client) -> None:
        with client.stream() as stream:
            attached = stream.attach([client.session("a"), "b", "missing"])
            assert attached.positions == [0, 0, 0]
            assert [(lane, error.reason) for lane, error in attached.errors.items()] == [(2, "UNKNOWN_SESSION")]
            result = stream.step(np.array([0, 1, 2]), tokens=np.array([5, 6, 7]))
            assert (result.lanes, result.positions, list(result.errors)) == ([0, 1], [1, 1], [2])
            assert result.ids is not None
            assert result.ids.tolist() == [[5], [6]]
            stream.send([0], tokens=[1])
            stream.send([1], values=[[1.0, 2.0], [3.0, 4.0]], lengths=[2], positions=[1])
            with pytest.raises(RuntimeError, match="in flight"):
                stream.attach(["c"])
            assert [stream.receive().positions for _ in range(2)] == [[2], [3]]
            with pytest.raises(errors.InvalidInputError):
                stream.step([9], tokens=[1])
            assert stream.step([0], tokens=[1]).positions == [3]

    await in_thread(body)


async def test_leaving_a_stream_cancels_what_is_in_flight(in_thread: In, service: FakeCore) -> None:
    service.add_sessions("a")
    service.is_holding = True

    def body(client: Client) -> None:
        with client.session("a").stream() as stream:
            stream.send("x")
            asyncio.run_coroutine_threadsafe(service.submitted.get(), loop).result()

    loop = asyncio.get_running_loop()
    await in_thread(body)
    assert await service.cancelled.get() == "a"


async def test_a_text_by_itself_is_one_sequence_one_id_and_one_stop_string(in_thread: In, service: FakeCore) -> None:
    def body(client: Client) -> None:
        assert [each.length for each in client.predict("echo", "ROMEO:").predictions] == [6]
        with client.open("echo") as session, client.stream() as stream:
            assert [fork.id for fork in session.fork("abc")] == ["abc"]
            assert list(stream.attach(session).positions) == [0]
            list(session.generate(max_tokens=1, stop="x"))

    await in_thread(body)


async def test_objects_say_what_they_are_in_a_line(in_thread: In, address: str) -> None:
    def body(client: Client) -> None:
        assert repr(client) == f"Client('{address}')"
        with client.open("echo", id="mine") as session, session.stream() as steps, client.stream() as columns:
            assert repr(session) == "<Session mine of echo/2 at 0>"
            assert repr(steps) == "<SessionStream of mine at 0, 0 in flight>"
            assert repr(columns) == f"<ColumnStream to {address}, 0 in flight>"

    await in_thread(body)


async def test_what_grpc_refuses_is_invalid_input(in_thread: In) -> None:
    def body(client: Client) -> None:
        with pytest.raises(errors.InvalidInputError, match="session must be a session's id"):
            client.session("Gänge")
        with client.open("echo") as session, pytest.raises(errors.InvalidInputError, match="timeout must be a number"):
            session.step("a", timeout="soon")  # type: ignore[arg-type]

    await in_thread(body)
