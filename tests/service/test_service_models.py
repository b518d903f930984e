"""Models: what is loaded, what is refused, and what a reload does to sessions that are running."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.clock import ManualClock
from tests.service.serving import change_bundle, collect, corrupt, serving
from tidegate.api import Input, Sampling, SessionRequest, StepOptions
from tidegate.bundle import GRAPH, MANIFEST, StateSpec, read_bundle, write_bundle
from tidegate.config import load_settings
from tidegate.errors import ConfigurationError, InvalidInputError, NotFoundError, SessionEndedError
from tidegate.service import Service

ABC = Input(text="abc")


def labels(service: Service) -> list[str]:
    """What is offered."""
    return [f"{model.name}/{model.version}" for model in service.models().models]


def loaded(service: Service) -> list[str]:
    """What is in memory."""
    return sorted(f"{model.model}/{model.version}" for model in service.statistics().models)


async def test_models_tell_what_they_are(tmp_path: Path) -> None:
    write_tiny_forecast_bundle(tmp_path)
    path = write_tiny_bundle(tmp_path, "tiny", "2", cell="gru")
    write_tiny_bundle(tmp_path, "tiny", "10", seed=1)
    async with serving(tmp_path) as service:
        assert labels(service) == ["tiny/2", "tiny/10", "tiny-forecast/1"]
        info = service.model("tiny", "2")
        assert (info.versions, info.task, info.cell, info.provider) == (
            ["2", "10"],
            "next_token",
            "gru",
            "CPUExecutionProvider",
        )
        assert (info.state_bytes, info.surprise_unit, info.sha256) == (128, "bits", read_bundle(path).sha256)
        assert [(tensor.name, tensor.dtype, tensor.axes) for tensor in info.inputs] == [
            ("tokens", "int64", ["batch", "time"])
        ]
        assert service.model("tiny-forecast").features == ["load", "hour"]
        assert service.model("tiny").version == "10"


async def test_models_are_listed_in_pages(tmp_path: Path) -> None:
    for name in "abcde":
        write_tiny_bundle(tmp_path, name)
    async with serving(tmp_path) as service:
        first = service.models(limit=2)
        second = service.models(limit=2, page_token=first.next_page_token)
        third = service.models(limit=2, page_token=second.next_page_token)
        assert [model.name for page in (first, second, third) for model in page.models] == list("abcde")
        assert third.next_page_token == ""
        assert service.models(limit=2, page_token=str(900)).models == []
        for token in ("x", "-1", "9" * 30, "9" * 5000, "٣"):
            with pytest.raises(InvalidInputError) as caught:
                service.models(page_token=token)
            assert caught.value.reason == "BAD_PAGE"


async def test_a_new_version_becomes_the_default_and_running_sessions_stay_on_theirs(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path) as service:
        old = (await service.open_session(SessionRequest("tiny"))).id
        await service.step(old, ABC)
        (before,) = (await service.predict("tiny", None, [Input(text="abcd")], StepOptions())).predictions
        write_tiny_bundle(tmp_path, version="2", seed=9)
        report = await service.reload()
        assert (report.loaded, report.removed, report.refused) == (["tiny/2"], [], [])
        new = await service.open_session(SessionRequest("tiny"))
        assert (new.version, (await service.get_session(old)).version) == ("2", "1")
        after = (await service.step(old, Input(text="d"), position=3)).prediction
        assert after.next == before.next
        assert (await service.predict("tiny", None, [ABC], StepOptions())).version == "2"
        assert (await service.predict("tiny", "1", [ABC], StepOptions())).version == "1"
        assert await service.reload() == type(report)()


@pytest.mark.parametrize("end", ["close", "expire", "look-up", "evict"])
async def test_a_removed_version_serves_its_sessions_and_goes_with_the_last(tmp_path: Path, end: str) -> None:
    clock = ManualClock()
    path = write_tiny_bundle(tmp_path)
    write_tiny_bundle(tmp_path, version="2", seed=1)
    async with serving(tmp_path, clock, arena_mb=1, evict_idle=5) as service:
        session = (await service.open_session(SessionRequest("tiny", version="1", idle_seconds=10))).id
        shutil.rmtree(path)
        report = await service.reload()
        assert report.removed == ["tiny/1"]
        assert labels(service) == ["tiny/2"]
        with pytest.raises(NotFoundError, match="it has 2"):
            await service.open_session(SessionRequest("tiny", version="1"))
        assert (await service.step(session, ABC)).position == 3
        assert (await collect(service.generate_on_session(session, None, Sampling(2))))[1].position == 5
        assert loaded(service) == ["tiny/1", "tiny/2"]
        await finish(service, clock, session, end)
        assert loaded(service) == ["tiny/2"]


async def finish(service: Service, clock: ManualClock, session: str, end: str) -> None:
    """End the session in one of the ways; a running service then calls ``expire`` within a second."""
    if end == "close":
        await service.close_session(session)
        return
    clock.now += 10
    if end == "look-up":
        with pytest.raises(SessionEndedError):
            await service.get_session(session)
    while end == "evict" and not service.statistics().ended:
        await service.open_session(SessionRequest("tiny"))
    await service.expire()


async def test_a_removed_version_finishes_what_it_has_begun(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    async with serving(tmp_path) as service:
        events = service.generate("tiny", None, ABC, Sampling(50, seed=1))
        told = [await anext(events)]
        shutil.rmtree(path)
        assert (await service.reload()).removed == ["tiny/1"]
        told += [event async for event in events]
        assert len(told) == 51
        await service.expire()
        assert loaded(service) == []


async def test_a_version_that_comes_back_is_offered_again(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "bundles")
    async with serving(tmp_path / "bundles") as service:
        session = (await service.open_session(SessionRequest("tiny"))).id
        moved = shutil.move(path, tmp_path / "1")
        await service.reload()
        assert labels(service) == []
        shutil.move(moved, path)
        assert (await service.reload()).loaded == ["tiny/1"]
        await service.close_session(session)
        await service.expire()
        assert labels(service) == ["tiny/1"]


async def test_changed_content_under_a_loaded_version_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    async with serving(tmp_path) as service:
        session = (await service.open_session(SessionRequest("tiny"))).id
        before = service.model("tiny").sha256
        shutil.rmtree(path)
        write_tiny_bundle(tmp_path, seed=5)
        (refusal,) = (await service.reload()).refused
        assert (refusal.bundle, refusal.reason) == ("tiny/1", "CONTENT_CHANGED")
        assert service.model("tiny").sha256 == before
        assert (await service.step(session, ABC)).position == 3


async def test_a_loaded_version_whose_files_go_bad_serves_on(tmp_path: Path) -> None:
    corrupt(write_tiny_bundle(tmp_path / "a"))
    path = write_tiny_bundle(tmp_path / "b")
    async with serving(tmp_path / "b") as service:
        corrupt(path)
        report = await service.reload()
        assert [refusal.reason for refusal in report.refused] == ["CHECKSUM_MISMATCH"]
        assert labels(service) == ["tiny/1"]
        assert (await service.predict("tiny", None, [ABC], StepOptions())).version == "1"


async def test_bad_bundles_are_refused_each_with_its_reason_and_the_others_serve(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "good")
    corrupt(write_tiny_bundle(tmp_path, "corrupted"))
    (write_tiny_bundle(tmp_path, "cut") / GRAPH).write_bytes(b"")
    (write_tiny_bundle(tmp_path, "half") / MANIFEST).unlink()
    (write_tiny_bundle(tmp_path, "garbled") / MANIFEST).write_text("{")
    (write_tiny_bundle(tmp_path, "gap") / "vocabulary.json").unlink()
    (tmp_path / "empty" / "1").mkdir(parents=True)
    path = write_tiny_bundle(tmp_path, "good")
    manifest = read_bundle(path).manifest
    files = {name: (path / name).read_bytes() for name in manifest.files}
    write_bundle(tmp_path, manifest.model_copy(update={"name": "unproven", "proof": None}), files)
    write_bundle(tmp_path, manifest.model_copy(update={"name": "nonsense"}), {**files, GRAPH: b"no graph"})
    write_bundle(tmp_path, manifest.model_copy(update={"name": "wordless"}), {**files, "vocabulary.json": b"{}"})
    service = Service(load_settings({"bundles": tmp_path}))
    report = await service.start()
    try:
        assert report.loaded == ["good/1"]
        assert {refusal.bundle.partition("/")[0]: refusal.reason for refusal in report.refused} == {
            "corrupted": "CHECKSUM_MISMATCH",
            "cut": "CHECKSUM_MISMATCH",
            "empty": "BAD_BUNDLE",
            "gap": "BAD_BUNDLE",
            "garbled": "BAD_BUNDLE",
            "half": "BAD_BUNDLE",
            "nonsense": "GRAPH_REFUSED",
            "unproven": "NOT_STREAMABLE",
            "wordless": "BAD_BUNDLE",
        }
        assert (await service.predict("good", None, [ABC], StepOptions())).version == "1"
    finally:
        await service.stop()


async def test_a_folder_whose_name_is_no_text_keeps_nobody_from_the_report(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "good")
    (tmp_path / "\udcff" / "1").mkdir(parents=True)
    service = Service(load_settings({"bundles": tmp_path}))
    report = await service.start()
    try:
        (refusal,) = report.refused
        assert refusal.bundle == r"\udcff/1"
        assert refusal.message.startswith("no readable manifest.json")
    finally:
        await service.stop()


async def test_what_a_stranger_wrote_is_refused_alone_and_nobody_waits(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "good")
    (write_tiny_bundle(tmp_path, "fifo") / MANIFEST).unlink()
    os.mkfifo(tmp_path / "fifo" / "1" / MANIFEST)
    (tmp_path / "loop").symlink_to("loop")
    write_tiny_bundle(tmp_path, "zeros").rename(tmp_path / "zeros" / "01")
    change_bundle(write_tiny_bundle(tmp_path / "sources", "names"), "2", lengths="n")
    wide = StateSpec(input="h_in", output="h_out", dtype="float32", axes=(2, "batch", 1 << 20))
    change_bundle(write_tiny_bundle(tmp_path / "sources", "large", cell="gru"), "2", states=(wide,))
    for name in ("names", "large"):
        (tmp_path / name).mkdir()
        (tmp_path / "sources" / name / "2").rename(tmp_path / name / "2")
    shutil.rmtree(tmp_path / "sources")
    service = Service(load_settings({"bundles": tmp_path, "arena_mb": 4}))
    report = await service.start()
    try:
        assert report.loaded == ["good/1"]
        assert {(refusal.bundle, refusal.reason): refusal.message for refusal in report.refused} == {
            ("fifo/1", "BAD_BUNDLE"): "fifo/1/manifest.json: not a regular file",
            ("large/2", "STATE_TOO_LARGE"): "the state of one session takes 8,388,868 bytes, more than --arena-mb 4 "
            "has for all",
            (f"{tmp_path.name}/loop", "BAD_BUNDLE"): "no readable manifest.json (Too many levels of symbolic links)",
            ("names/2", "BAD_BUNDLE"): "the graph has no input n, which the manifest names for lengths",
            ("zeros/01", "BAD_BUNDLE"): "the manifest names zeros/1, its folder does not",
        }
        assert (await service.predict("good", None, [ABC], StepOptions())).version == "1"
    finally:
        await service.stop()


async def test_a_bundle_that_is_mended_loads_at_the_next_reload(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    whole = (path / GRAPH).read_bytes()
    (path / GRAPH).write_bytes(whole[:50])
    async with serving(tmp_path) as service:
        assert labels(service) == []
        assert not (await service.reload()).loaded
        (path / GRAPH).write_bytes(whole)
        assert (await service.reload()).loaded == ["tiny/1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"bundles": Path("/nowhere/at/all")}, "BAD_CONFIGURATION"), ({"provider": "cuda"}, "PROVIDER_NOT_AVAILABLE")],
)
async def test_what_cannot_work_is_fatal_at_the_start(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    write_tiny_bundle(tmp_path)
    service = Service(load_settings({"bundles": tmp_path, **changes}))
    with pytest.raises(ConfigurationError) as caught:
        await service.start()
    assert caught.value.reason == reason
    assert not service.is_ready
    await service.stop()


@pytest.mark.parametrize("table", [{"provider": "cuda"}, {"provider": "cuda", "arena": "host"}])
async def test_a_provider_that_one_model_asks_for_and_is_not_there_is_fatal(
    tmp_path: Path, table: dict[str, str]
) -> None:
    write_tiny_bundle(tmp_path, "tiny")
    service = Service(load_settings({"bundles": tmp_path, "models": {"tiny": table}}))
    with pytest.raises(ConfigurationError, match="provider cuda is not in the installed onnxruntime") as caught:
        await service.start()
    assert caught.value.reason == "PROVIDER_NOT_AVAILABLE"
    await service.stop()


async def test_a_model_has_its_own_settings_and_settings_without_a_model_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_bundle(write_tiny_bundle(tmp_path, "careful"), "2", batch_invariant=False)
    change_bundle(write_tiny_bundle(tmp_path, "careless"), "2", batch_invariant=False)
    tables = {"careless": {"allow_batch_dependence": True, "arena": "device"}, "absent": {"arena": "host"}}
    async with serving(tmp_path, models=tables) as service:
        for name in ("careful", "careless"):
            await service.predict(name, None, [ABC] * 4, StepOptions())
        runs = {model.model: model.rows_per_run for model in service.statistics().models if model.num_runs}
    assert runs == {"careful": {1: 4}, "careless": {4: 1}}
    assert "settings for the model absent, but no bundle" in caplog.text


async def test_models_share_the_arenas_budget(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "a")
    write_tiny_bundle(tmp_path, "b")
    clock = ManualClock()
    async with serving(tmp_path, clock, arena_mb=1, evict_idle=0) as service:
        for number in range(6000):
            await service.open_session(SessionRequest("ab"[number % 2]))
        statistics = service.statistics()
        assert sum(model.arena_bytes for model in statistics.models) <= 1 << 20
        assert sum(model.arena_slots_used for model in statistics.models) == statistics.num_sessions > 1000


async def test_an_arena_for_which_there_is_no_address_space_is_told(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    with pytest.raises(ConfigurationError, match="--arena-mb: the system has no address space for 16777216 MiB"):
        async with serving(tmp_path, arena_mb=2**24):
            pass


async def test_everybody_is_served_while_bundles_are_read(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path) as service:
        write_tiny_bundle(tmp_path, "large", hidden=256)
        reloading = asyncio.create_task(service.reload())
        num_served = 0
        while not reloading.done():
            await service.predict("tiny", None, [ABC], StepOptions())
            num_served += 1
        assert reloading.result().loaded == ["large/1"]
        assert num_served > 3
