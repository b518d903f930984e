"""What the protocol tells of server and models, as JSON; gRPC's messages have the same names and are filled from it.

Knows what stock clients look for: perf_analyzer reads inputs, ``max_batch_size`` and ``sequence_batching``. States
and lengths are nowhere in it: a client that saw them would send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tidegate import __version__
from tidegate.bundle import Manifest
from tidegate.transports.oip.signature import Port, SettingPort, Signature

Json = dict[str, Any]

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"


def server_metadata() -> Json:
    return {"name": "tidegate", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, versions: list[str], signature: Signature) -> Json:
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [*map(_tensor, signature.inputs), *map(_tensor, signature.settings)],
        "outputs": [_tensor(port) for port in signature.outputs.values()],
    }


def parameters(manifest: Manifest) -> dict[str, str]:
    """What a bundle says for people, as the configuration's parameters: ``sample_rate``, ``unit.NAME`` and so on."""
    said = {"sample_rate": manifest.sample_rate, "frame_length": manifest.frame_length}
    found = {name: f"{value:g}" for name, value in said.items() if value is not None}
    for name, meaning in manifest.meanings.items():
        found |= {f"{field}.{name}": text for field, text in meaning.model_dump(exclude_none=True).items()}
    return found


def model_config(
    name: str,
    version: str,
    signature: Signature,
    idle_seconds: float | None,
    *,
    has_sequences: bool,
    said: Mapping[str, str] = MappingProxyType({}),
) -> Json:
    """The configuration; ``said`` are its parameters. A sequence has no fixed place in a batch, which Triton calls the
    oldest-first strategy.
    """
    batched = signature.max_batch > 0
    config: Json = {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(version)]}},
        "max_batch_size": signature.max_batch,
        "input": [
            *(_config_tensor(port, batched) for port in signature.inputs),
            *({**_config_tensor(port, batched), "optional": True} for port in signature.settings),
        ],
        "output": [_config_tensor(port, batched) for port in signature.outputs.values()],
        "default_model_filename": "model.onnx",
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if said:
        config["parameters"] = {key: {"string_value": text} for key, text in said.items()}
    if has_sequences:
        idle = 0 if idle_seconds is None else round(idle_seconds * 1e6)
        oldest = {"max_candidate_sequences": 2**31 - 1, "preserve_ordering": True}
        config["sequence_batching"] = {"oldest": oldest, "max_sequence_idle_microseconds": idle}
    elif batched:
        config["dynamic_batching"] = {}
    return config


def _tensor(port: Port | SettingPort) -> Json:
    return {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}


def _config_tensor(port: Port | SettingPort, batched: bool) -> Json:
    dims = port.shape[1:] if batched else port.shape
    return {"name": port.name, "data_type": f"TYPE_{port.datatype}", "dims": list(dims)}
