"""The loaded models: their versions, the choice of a version by name, and the reload.

A version that is removed from the directory is no longer offered, but stays loaded while sessions run on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tidegate.api import ColumnInfo, ModelInfo, Refusal, ReloadReport, SettingInfo, TensorInfo
from tidegate.bundle import (
    Bundle,
    Manifest,
    Meaning,
    SettingSpec,
    TensorSpec,
    find_bundles,
    is_version,
    read_bundle,
)
from tidegate.codecs import make_codec
from tidegate.codecs.scores import read_scores
from tidegate.codecs.settings import SettingsCodec
from tidegate.codecs.tensors import Tensors
from tidegate.config import Settings
from tidegate.drift import Chart
from tidegate.engine.arena import Arena, ArenaLike, Budget, Plane
from tidegate.engine.device.arena import FIRST_ROW, DeviceArena, DeviceMemory
from tidegate.engine.device.runner import DeviceRunner, open_device_runner
from tidegate.engine.engine import Engine
from tidegate.engine.loop import Loop
from tidegate.engine.model import Key, LoadedModel, SessionHost
from tidegate.engine.quality import Quality
from tidegate.engine.replies import Replies
from tidegate.engine.runner import Runner, check_provider
from tidegate.engine.scheduler import Scheduler
from tidegate.errors import (
    BundleError,
    ConfigurationError,
    FailedPreconditionError,
    NotFoundError,
    TidegateError,
    encodable,
    known_names,
    shown,
)
from tidegate.watchdog import RunLimit, Watchdog, load_timeout

log = logging.getLogger(__name__)

_LOAD_GRACE = 5.0
"""Seconds for onnxruntime to stop loading a graph after the request to stop."""

_DEVICE_ROWS = 1024
"""Initial rows of states in a device arena, if the budget has room for them."""


class Registry:
    """Loaded models by name and version.

    Args:
        settings: Settings of the server.
        clock: Monotonic seconds.

    Attributes:
        sessions: Holder of the sessions on the models; must be set before the first reload.
    """

    sessions: SessionHost

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self.budget = Budget(settings.arena_mb << 20)
        self._watchdog = Watchdog(settings.run_timeout, settings.load_timeout, clock)
        self.replies = Replies(settings.replies_mb << 20)
        self._models: dict[Key, LoadedModel] = {}
        self._reloading = asyncio.Lock()

    def __iter__(self) -> Iterator[LoadedModel]:
        """Iterate over the offered models by name, then by rising version."""
        return (self._models[key] for key in sorted(self._models) if self._models[key].is_offered)

    def loaded(self) -> list[LoadedModel]:
        """Return every model in memory, including those kept only for running sessions."""
        return list(self._models.values())

    def versions(self, name: str) -> list[int]:
        """Return the offered versions of a model in rising order."""
        return sorted(
            number for other, number in self._models if other == name and self._models[other, number].is_offered
        )

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """Return the version, or the highest one if ``version`` is None or empty.

        Raises:
            NotFoundError: It is not offered.
        """
        versions = self.versions(name)
        if not versions:
            names = list(dict.fromkeys(model.manifest.name for model in self))
            raise NotFoundError(
                f"unknown model {shown(name)}{known_names(name, names, 'the models here are')}", reason="UNKNOWN_MODEL"
            )
        if not version:
            return self._models[name, versions[-1]]
        known = list(map(str, versions))
        if version not in known:
            raise NotFoundError(
                f"model {name} has no version {shown(version)}{known_names(version, known, 'it has')}",
                reason="UNKNOWN_VERSION",
            )
        return self._models[name, int(version)]

    def find_loaded(self, name: str, version: str) -> LoadedModel | None:
        """Return the version if it is in memory, offered or not."""
        return self._models.get((name, int(version))) if version.isdecimal() else None

    def info(self, model: LoadedModel) -> ModelInfo:
        """Return the public description of a model."""
        manifest = model.manifest
        return ModelInfo(
            name=manifest.name,
            version=manifest.version,
            versions=[str(number) for number in self.versions(manifest.name)],
            task=manifest.task,
            cell=manifest.cell,
            inputs=[_tensor_info(manifest, spec) for spec in manifest.inputs],
            outputs=[_tensor_info(manifest, spec) for spec in manifest.outputs],
            features=list(manifest.features),
            state_bytes=manifest.state_bytes,
            surprise_unit=model.codec.surprise_unit,
            batch_invariant=manifest.batch_invariant,
            sha256=model.bundle.sha256,
            provider=model.runner.provider,
            surprise=model.quality.surprise,
            drift=model.quality.drift,
            settings=[_setting_info(manifest, spec) for spec in manifest.settings],
            sample_rate=manifest.sample_rate,
            frame_length=manifest.frame_length,
            columns=[
                ColumnInfo(name, meaning.unit, meaning.description)
                for name in manifest.features
                if (meaning := manifest.meanings.get(name)) is not None
            ],
        )

    async def reload(self) -> ReloadReport:
        """Load and remove models to match the bundle directory. A refused bundle does not affect the others.

        Raises:
            ConfigurationError: The directory cannot be read, or the provider is unavailable.
        """
        async with self._reloading:
            report = ReloadReport()
            found = await asyncio.to_thread(_find, self._settings.bundles)
            for path in found:
                await self._load(path, report)
            there = {_key(path) for path in found if is_version(path.name)}
            for key in [key for key, model in self._models.items() if model.is_offered and key not in there]:
                report.removed.append(self._models[key].label)
                self._models[key].is_offered = False
            for name in sorted(set(self._settings.models) - {path.parent.name for path in found}):
                log.warning("there are settings for the model %s, but no bundle", name)
            await self.retire()
            return report

    async def retire(self) -> None:
        """Unload the models that are no longer offered and have no session and no request left."""
        # Search again each time: while one stops, others may be needed again or be unloaded by another caller.
        while (model := next((each for each in self._models.values() if not each.is_needed), None)) is not None:
            del self._models[model.key]
            await model.stop()

    async def stop(self) -> None:
        """Stop all models."""
        await asyncio.gather(*(model.stop() for model in self._models.values()))
        self._watchdog.close()

    async def _load(self, path: Path, report: ReloadReport) -> None:
        try:
            bundle = await asyncio.to_thread(read_bundle, path)
            present = self._models.get(_key(path))
            if present is None:
                settings = self._settings.of(bundle.manifest.name)
                model = await self._assemble_in_time(bundle, settings)
                model.loop.start()
                self._models[model.key] = model
                report.loaded.append(model.label)
            elif present.bundle.sha256 != bundle.sha256:
                raise FailedPreconditionError(
                    f"{path}: the content of a loaded version changed: give it a new version", reason="CONTENT_CHANGED"
                )
            elif not present.is_offered:
                present.is_offered = True
                report.loaded.append(present.label)
        except ConfigurationError:
            raise
        except Exception as error:  # the others are served, whatever a bundle does to the loading code
            if not isinstance(error, TidegateError):
                log.exception("could not load bundle %s", path)
                error = BundleError(f"{path}: could not be loaded ({type(error).__name__})")
            label = encodable(f"{path.parent.name}/{path.name}")
            # The log has the full path. Callers get only the name, nothing about the disk.
            log.warning("refused bundle %s: %s", path, error)
            told = error.message.replace(encodable(str(path)), label).removeprefix(f"{label}: ")
            report.refused.append(Refusal(label, error.reason, told))

    async def _assemble_in_time(self, bundle: Bundle, settings: Settings) -> LoadedModel:
        """Build everything that runs a bundle, in a thread that is abandoned if the graph takes too long to load.

        The watchdog usually stops it earlier, but onnxruntime cannot be stopped while it folds the graph's constants.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[LoadedModel] = loop.create_future()

        def assemble() -> None:
            settle: Callable[[], None]
            try:
                settle = functools.partial(future.set_result, self._assemble(bundle, settings))
            except BaseException as error:  # noqa: BLE001 - raised in the caller that waits
                settle = functools.partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
                loop.call_soon_threadsafe(finish, settle)

        def finish(settle: Callable[[], None]) -> None:
            if not future.done():  # else the caller has given up
                settle()

        threading.Thread(target=assemble, name=f"load-{bundle.manifest.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(future, settings.load_timeout + _LOAD_GRACE)
        except TimeoutError:
            raise load_timeout(settings.load_timeout) from None

    def _assemble(self, bundle: Bundle, settings: Settings) -> LoadedModel:
        """Build everything that runs a bundle."""
        manifest = bundle.manifest
        codec = make_codec(bundle)
        kept = None if codec.kept_output is None else _kept_plane(bundle, codec.kept_output)
        slot_bytes = manifest.state_bytes + (0 if kept is None else kept.row_bytes)
        if slot_bytes > self.budget.total:
            raise BundleError(
                f"{bundle.path}: the state of one session takes {slot_bytes:,} bytes, more than --arena-mb "
                f"{settings.arena_mb} has for all",
                reason="STATE_TOO_LARGE",
            )
        try:
            limit = self._watchdog.limit()
            runner, arena = _make_runner_and_arena(bundle, kept, settings, self.budget, limit)
        except MemoryError:
            raise ConfigurationError(
                f"--arena-mb: the system has no address space for {settings.arena_mb} MiB of states: ask for less, or "
                f"lift the limit (`ulimit -v`, vm.overcommit_memory)"
            ) from None
        shares = manifest.is_batchable and (manifest.batch_invariant or settings.allow_batch_dependence)
        scheduler = Scheduler(settings.max_rows if shares else 1, settings.max_steps)
        chart = None if manifest.drift is None else Chart(manifest.drift)
        quality = Quality(read_scores(bundle), chart, f"{manifest.name}/{manifest.version}")
        settings_codec = SettingsCodec(manifest.settings)
        engine = Engine(
            codec,
            arena,
            len(manifest.states),
            scheduler,
            settings.max_queue,
            defaults=settings_codec.defaults,
            make_room=self.sessions.evict_one,
            replies=self.replies,
            raw=Tensors(manifest.inputs, manifest.features, manifest.outputs),
            quality=quality,
        )
        executor = ThreadPoolExecutor(1, f"run-{manifest.name}") if settings.execution == "thread" else None
        loop = Loop(engine, runner, self._clock, committer=self.sessions, executor=executor, limit=limit)
        planes = {spec.input: Plane.of_state(spec) for spec in manifest.states}
        if kept is not None and codec.kept_output is not None:
            planes[codec.kept_output] = kept
        # The codec and the runner hold the files' content by now.
        return LoadedModel(
            replace(bundle, files={}), codec, runner, arena, engine, loop, executor, planes, quality, settings_codec
        )


def _key(path: Path) -> Key:
    return path.parent.name, int(path.name)


def _find(root: Path) -> list[Path]:
    try:
        return list(find_bundles(root))
    except OSError as error:
        raise ConfigurationError(f"--bundles: {error.filename or root}: {error.strerror}") from error


def _make_runner_and_arena(
    bundle: Bundle, kept: Plane | None, settings: Settings, budget: Budget, limit: RunLimit
) -> tuple[Runner | DeviceRunner, ArenaLike]:
    """Build the runner and its arena: states are copied for each run, or stay on the device."""
    manifest = bundle.manifest
    is_on_device = settings.arena == "device" or (settings.arena == "auto" and settings.provider == "cuda")
    if not is_on_device:
        planes = [Plane.of_state(spec) for spec in manifest.states]
        runner = Runner(bundle, settings.provider, settings.threads, limit=limit)
        return runner, Arena(planes if kept is None else [*planes, kept], budget)
    check_provider(settings.provider)  # before device memory is allocated
    num_rows = max(1, min(_DEVICE_ROWS, budget.total // manifest.state_bytes))
    memory = DeviceMemory(manifest.states, settings.provider, FIRST_ROW + num_rows)
    device_runner = open_device_runner(
        bundle,
        memory,
        settings.provider,
        settings.threads,
        fills=manifest.is_batchable and manifest.batch_invariant,
        captures=settings.cuda_graphs and settings.provider == "cuda",
        limit=limit,
    )
    return device_runner, DeviceArena(memory, kept, budget)


def _kept_plane(bundle: Bundle, name: str) -> Plane:
    try:
        return Plane.of_output(bundle.manifest.output(name))
    except KeyError as error:
        raise BundleError(f"{bundle.path}: the codec names an output {error} that the graph has not") from error


def _tensor_info(manifest: Manifest, spec: TensorSpec) -> TensorInfo:
    meaning = manifest.meanings.get(spec.name, Meaning())
    return TensorInfo(spec.name, spec.dtype, [str(axis) for axis in spec.axes], meaning.unit, meaning.description)


def _setting_info(manifest: Manifest, spec: SettingSpec) -> SettingInfo:
    meaning = manifest.meanings.get(spec.name, Meaning())
    return SettingInfo(
        spec.name, spec.dtype, list(spec.row_shape), list(spec.default), meaning.unit, meaning.description
    )
