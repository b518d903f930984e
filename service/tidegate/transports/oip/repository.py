"""The model repository of the protocol, which here is the bundle directory: what is in it, reading it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidegate.api import Core, ReloadReport
from tidegate.errors import FailedPreconditionError, NotSupportedError, shown

Json = dict[str, Any]


class Repository:
    """What is offered, and what the last load refused."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._refused: dict[tuple[str, str], str] = {}

    def index(self, *, ready_only: bool) -> list[Json]:
        """The models that are offered and, unless only those are wanted, those that the last load refused."""
        models = [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, version in (served.key for served in self._core.list_served())
        ]
        if not ready_only:
            models += [
                {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
                for (name, version), reason in sorted(self._refused.items())
            ]
        return models

    async def load(self, name: str, parameters: Sequence[str] = ()) -> None:
        """Read the bundle directory again, and make sure that the model is offered.

        Raises:
            NotSupportedError: Files or a configuration came with the request: models are bundles in the directory.
            FailedPreconditionError: Its bundle was refused, with the reason.
            NotFoundError: It has none.
        """
        if parameters:
            found = ", ".join(map(shown, parameters[:3]))
            raise NotSupportedError(
                f"a model cannot be sent with the request ({found}): put a bundle into the directory"
            )
        self._remember(await self._core.reload())
        refusals = [f"{name}/{version}: {why}" for (other, version), why in self._refused.items() if other == name]
        if refusals:
            raise FailedPreconditionError("; ".join(refusals), reason="BAD_BUNDLE")
        self._core.get_served(name, "")

    async def unload(self, name: str) -> None:
        """Read the bundle directory again, and make sure that the model is not offered any more.

        What is served is what the directory holds, so this succeeds once the model's folder is gone.

        Raises:
            FailedPreconditionError: Its folder is still there.
        """
        self._remember(await self._core.reload())
        if any(served.manifest.name == name for served in self._core.list_served()):
            raise FailedPreconditionError(
                f"model {name} stays loaded while its folder is in the bundle directory: move the folder away first",
                reason="BUNDLE_PRESENT",
            )

    def _remember(self, report: ReloadReport) -> None:
        self._refused = {_label(refusal.bundle): refusal.message for refusal in report.refused}


def _label(bundle: str) -> tuple[str, str]:
    name, _, version = bundle.rpartition("/")
    return name, version
