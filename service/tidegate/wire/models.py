"""Models and what a reload did, as messages."""

from __future__ import annotations

from tidegate.api import (
    ColumnInfo,
    DriftReport,
    ModelInfo,
    ModelPage,
    Refusal,
    ReloadReport,
    SettingInfo,
    SurpriseReport,
    TensorInfo,
)
from tidegate.v1 import models_pb2


def encode_model(info: ModelInfo) -> models_pb2.Model:
    return models_pb2.Model(
        name=info.name,
        version=info.version,
        versions=info.versions,
        task=info.task,
        cell=info.cell,
        inputs=[_encode_tensor(tensor) for tensor in info.inputs],
        outputs=[_encode_tensor(tensor) for tensor in info.outputs],
        features=info.features,
        state_bytes=info.state_bytes,
        surprise_unit=info.surprise_unit,
        batch_invariant=info.batch_invariant,
        sha256=info.sha256,
        provider=info.provider,
        surprise=None if info.surprise is None else models_pb2.SurpriseReport(**info.surprise._asdict()),
        drift=None if info.drift is None else _encode_drift(info.drift),
        settings=[models_pb2.ModelSetting(**each._asdict()) for each in info.settings],
        sample_rate=info.sample_rate,
        frame_length=info.frame_length,
        columns=[models_pb2.ModelColumn(**each._asdict()) for each in info.columns],
    )


def decode_model(message: models_pb2.Model) -> ModelInfo:
    """The inverse of `encode_model`."""
    return ModelInfo(
        name=message.name,
        version=message.version,
        versions=message.versions[:],
        task=message.task,
        cell=message.cell,
        inputs=[_decode_tensor(tensor) for tensor in message.inputs],
        outputs=[_decode_tensor(tensor) for tensor in message.outputs],
        features=message.features[:],
        state_bytes=message.state_bytes,
        surprise_unit=message.surprise_unit,
        batch_invariant=message.batch_invariant,
        sha256=message.sha256,
        provider=message.provider,
        surprise=_decode_surprise(message.surprise) if message.HasField("surprise") else None,
        drift=_decode_drift(message.drift) if message.HasField("drift") else None,
        settings=[
            SettingInfo(
                each.name, each.dtype, each.shape[:], each.default[:], each.unit or None, each.description or None
            )
            for each in message.settings
        ],
        sample_rate=message.sample_rate if message.HasField("sample_rate") else None,
        frame_length=message.frame_length if message.HasField("frame_length") else None,
        columns=[ColumnInfo(each.name, each.unit or None, each.description or None) for each in message.columns],
    )


def encode_model_page(page: ModelPage) -> models_pb2.ListModelsReply:
    models = [encode_model(info) for info in page.models]
    return models_pb2.ListModelsReply(models=models, next_page_token=page.next_page_token)


def decode_model_page(message: models_pb2.ListModelsReply) -> ModelPage:
    """The inverse of `encode_model_page`."""
    return ModelPage([decode_model(each) for each in message.models], message.next_page_token)


def encode_reload(report: ReloadReport) -> models_pb2.ReloadReply:
    refused = [
        models_pb2.ReloadReply.Refusal(bundle=bundle, reason=reason, message=message)
        for bundle, reason, message in report.refused
    ]
    return models_pb2.ReloadReply(loaded=report.loaded, removed=report.removed, refused=refused)


def decode_reload(message: models_pb2.ReloadReply) -> ReloadReport:
    """The inverse of `encode_reload`."""
    refused = [Refusal(each.bundle, each.reason, each.message) for each in message.refused]
    return ReloadReport(message.loaded[:], message.removed[:], refused)


def _encode_tensor(tensor: TensorInfo) -> models_pb2.ModelTensor:
    return models_pb2.ModelTensor(**tensor._asdict())


def _decode_tensor(message: models_pb2.ModelTensor) -> TensorInfo:
    return TensorInfo(message.name, message.dtype, message.axes[:], message.unit or None, message.description or None)


def _decode_surprise(message: models_pb2.SurpriseReport) -> SurpriseReport:
    return SurpriseReport(message.mean if message.HasField("mean") else None, message.steps)


def _encode_drift(report: DriftReport) -> models_pb2.DriftReport:
    message = models_pb2.DriftReport(
        state=report.state,
        ewma=report.ewma,
        blocks=report.blocks,
        block=report.block,
        mean=report.mean,
        spread=report.spread,
    )
    message.warning.low, message.warning.high = report.warning
    message.drift.low, message.drift.high = report.drift
    return message


def _decode_drift(message: models_pb2.DriftReport) -> DriftReport:
    return DriftReport(
        state=message.state,
        ewma=message.ewma,
        blocks=message.blocks,
        block=message.block,
        mean=message.mean,
        spread=message.spread,
        warning=(message.warning.low, message.warning.high),
        drift=(message.drift.low, message.drift.high),
    )
