"""What goes with every call, and to whom it does not go."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.service.client.reach import on_h2corn
from tidegate.client import AsyncClient, Client
from tidegate.client.channel import ChannelPlan
from tidegate.errors import InvalidInputError

SECONDS = 60


async def test_metadata_and_a_token_go_with_every_call(tmp_path: Path) -> None:
    for at in ("127.0.0.1:0", f"unix:{tmp_path}/socket"):
        async with (
            on_h2corn(at) as (address, recorder),
            AsyncClient(
                address, credentials="tg_a_b", metadata=[("Tenant", "blue"), ("raw-bin", b"\x00\xff")], timeout=SECONDS
            ) as client,
        ):
            await client.models()
        (head,) = recorder.heads
        assert (head["authorization"], head["tenant"], head["raw-bin"]) == ("Bearer tg_a_b", "blue", "AP8")


async def test_a_function_is_asked_for_a_token_at_each_call() -> None:
    numbers = itertools.count()

    def blocking(address: str) -> None:
        with Client(address, credentials=lambda: f"token-{next(numbers)}", timeout=SECONDS) as client:
            client.models()
            client.models()

    async with on_h2corn() as (address, recorder):
        await asyncio.to_thread(blocking, address)
    assert [head["authorization"] for head in recorder.heads] == ["Bearer token-0", "Bearer token-1"]


def test_a_session_is_named_for_proxies_beside_what_the_user_says() -> None:
    plan = ChannelPlan("model.example:1", metadata=[("a", "b"), ("a", "c")])
    assert plan.metadata("s") == (("a", "b"), ("a", "c"), ("tidegate-session", "s"))
    assert plan.metadata("") == (("a", "b"), ("a", "c"))


@pytest.mark.parametrize("session", ["é", "a\ud83d", "a\nb", "日本"])
def test_an_id_that_no_header_carries_is_refused_before_anything_is_sent(session: str) -> None:
    with pytest.raises(InvalidInputError, match="session must be a session's id"):
        ChannelPlan("model.example:1").metadata(session)


@pytest.mark.parametrize(
    "given", [{"credentials": "secret"}, {"credentials": lambda: "secret"}, {"metadata": {"Authorization": "secret"}}]
)
def test_a_token_goes_to_no_other_machine_in_plain_text_unless_that_is_said(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="in plain text") as caught:
        ChannelPlan("http://model.example:1", **given)
    assert "secret" not in caught.value.message
    for address in ("https://model.example", "[::1]:1", "unix:/run/a"):
        ChannelPlan(address, **given)
    assert ("authorization" in dict(ChannelPlan("model.example:1", insecure=True, **given).metadata(""))) is True


def test_what_no_header_carries_is_refused_and_not_repeated() -> None:
    wrong: list[Any] = [
        {"credentials": "sécret"},
        {"credentials": "secret word"},
        {"credentials": ""},
        {"credentials": lambda: "secret\n"},
        {"metadata": {"a": "sécret"}},
        {"metadata": {"a": b"secret"}},
        {"metadata": {"a-bin": "secret"}},
        {"metadata": {"ä": "secret"}},
        {"metadata": {"grpc-timeout": "secret"}},
        {"metadata": {"tidegate-session": "secret"}},
        {"metadata": {"a": 1}},
        {"metadata": 1},
        {"metadata": {"authorization": "secret"}, "credentials": "secret"},
    ]
    for given in wrong:
        with pytest.raises(InvalidInputError) as caught:
            ChannelPlan("127.0.0.1:1", **given).metadata("")
        assert "secret" not in caught.value.message
        assert "sécret" not in caught.value.message


def test_options_of_the_wrong_kind_are_named() -> None:
    wrong: dict[str, Any] = {"tls": "yes", "credentials": 7, "keepalive": 0}
    for name, value in wrong.items():
        with pytest.raises(InvalidInputError, match=f"{name} must be"):
            Client("127.0.0.1:1", **{name: value})
    with pytest.raises(TypeError, match="tsl"):
        Client("127.0.0.1:1", tsl=True)  # type: ignore[call-arg]


def test_credentials_of_grpc_need_tls() -> None:
    credentials = grpc.access_token_call_credentials("token")
    with pytest.raises(InvalidInputError, match="over TLS only"):
        ChannelPlan("127.0.0.1:1", credentials=credentials)
    assert ChannelPlan("https://model.example", credentials=credentials).credentials is not None


def test_proxies_are_for_other_machines_and_only_where_they_are_wanted() -> None:
    direct = ("grpc.enable_http_proxy", 0)
    assert direct not in ChannelPlan("model.example:1").options
    assert direct in ChannelPlan("model.example:1", proxy=False).options
    assert direct in ChannelPlan("127.0.0.1:1").options


def test_keep_alive_can_be_slowed_or_left_out() -> None:
    name = "grpc.keepalive_time_ms"
    assert dict(ChannelPlan("127.0.0.1:1").options)[name] == 20_000
    assert dict(ChannelPlan("127.0.0.1:1", keepalive=300).options)[name] == 300_000
    assert name not in dict(ChannelPlan("127.0.0.1:1", keepalive=None).options)
