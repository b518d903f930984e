"""The service runs where torch is not installed. One of four locks: lint, this, the wheel job, the image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate

FORBIDDEN = ("torch", "tidegate_models", "tidegate_export")

# Runs in a fresh interpreter, where nothing is imported yet. The finder turns an import into an error that names the
# importer; reading sys.modules afterwards also catches an import whose error somebody swallowed.
IMPORT_ALL = """
import importlib, json, sys

forbidden, modules = json.loads(sys.argv[1])
asked = []

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            asked.append(name)
            raise ImportError(f"the service must not import {name}")
        return None

sys.meta_path.insert(0, Forbid())
for module in modules:
    importlib.import_module(module)
loaded = [name for name in sys.modules if name.partition(".")[0] in forbidden]
json.dump({"asked": asked, "loaded": loaded}, sys.stdout)
"""


def import_all(modules: list[str]) -> subprocess.CompletedProcess[str]:
    request = json.dumps([FORBIDDEN, modules])
    command = [sys.executable, "-c", IMPORT_ALL, request]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def service_modules() -> list[str]:
    """Every module file, also in folders without ``__init__.py`` (stubs), which pkgutil would pass over."""
    root = Path(tidegate.__path__[0])
    files = [path.relative_to(root.parent) for path in root.rglob("*.py") if path.stem != "__main__"]
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


def test_no_module_of_the_service_imports_torch() -> None:
    modules = service_modules()
    assert {"tidegate", "tidegate.bundle", "tidegate.errors"} <= set(modules)
    result = import_all(modules)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"asked": [], "loaded": []}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_lock_bites(name: str) -> None:
    result = import_all([name])
    assert result.returncode != 0
    assert f"the service must not import {name}" in result.stderr
