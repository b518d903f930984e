"""The JSON documents as pydantic models: what /docs shows, and the checks of the requests that are not hot.

A model here is the description of a document. Steps and predictions are read and written by hand in ``convert.py``,
which is several times faster; the tests hold both to the same shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tidegate.api import LAST_POSITION
from tidegate.limits import MAX_STOP_LENGTH, MAX_STOP_STRINGS

Json = Any

ONE_INPUT: Json = {"oneOf": [{"required": ["text"]}, {"required": ["tokens"]}, {"required": ["values"]}]}

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,128}$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
UInt32 = Annotated[int, Field(ge=0, lt=2**32)]
UInt64 = Annotated[int, Field(ge=0, lt=2**64)]
Position = Annotated[int, Field(ge=0, le=LAST_POSITION)]

T = TypeVar("T")
Entries = Annotated[list[T], Field(fail_fast=True)]
"""A list of a request: the first entry that is wrong is told, and the millions behind it are not looked at."""


class Document(BaseModel):
    """A reply. Readers must expect keys that later versions add."""

    model_config = ConfigDict(frozen=True, from_attributes=True, defer_build=True)


class Body(BaseModel):
    """A request. An unknown key is an error, and nothing is converted to make it fit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Input(Body):
    """One sequence, or some consecutive steps of one."""

    model_config = ConfigDict(json_schema_extra=ONE_INPUT)

    text: str | None = Field(None, description="for models of text: one step a character")
    tokens: Entries[int] | None = Field(None, description="token ids, one a step")
    values: Entries[Entries[Finite]] | None = Field(
        None, description="rows in data units, one a step, in the order of the model's features"
    )
    inputs: dict[str, Json] | None = Field(
        None, description="values of the model's settings, for these steps alone: numbers or nested lists, by name"
    )


class Step(Input):
    """One chunk of a session."""

    position: Position | None = Field(None, description="the session's position before the chunk: makes a repeat safe")
    top: UInt32 = Field(1, description="candidates a step")
    every_step: bool = Field(False, description="tell every step instead of the last")


class Predict(Body):
    """Whole sequences."""

    sequences: Entries[Input] = Field(
        description="one bad sequence fails the call; the error's `sequence` is its index"
    )
    top: UInt32 = Field(1, description="candidates a step")
    every_step: bool = Field(False, description="tell every step instead of the last")
    version: str | None = Field(None, description="absent: the highest")


class Sampling(Body):
    """How to generate."""

    max_tokens: UInt32 = 256
    temperature: Finite = Field(1.0, description="0 takes the most probable token")
    top_k: UInt32 = Field(0, description="0: all tokens")
    top_p: Finite = 1.0
    seed: UInt64 | None = Field(None, description="absent: random, or the session's")
    stop: Entries[str] = Field(
        [],
        description=f"at most {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_LENGTH} characters that end the generation; "
        "they are consumed and withheld",
    )


class Generate(Input, Sampling):
    """A prompt and how to go on from it."""

    model_config = ConfigDict(json_schema_extra={})

    version: str | None = Field(None, description="absent: the highest")


class SessionGenerate(Input, Sampling):
    """How to go on, after a prompt or from the session's last step."""

    model_config = ConfigDict(json_schema_extra={})

    position: Position | None = Field(None, description="the session's position before the chunk: makes a repeat safe")


class OpenSession(Body):
    """A wish to open a session."""

    model: str
    version: str | None = Field(None, description="absent: the highest")
    durable: bool = False
    ttl_seconds: Seconds | None = Field(None, description="lifetime from opening; absent: the server's default")
    idle_seconds: Seconds | None = Field(None, description="lifetime from the last step; absent: the server's default")
    id: Id | None = Field(None, description="absent: the server chooses")
    seed: UInt64 | None = Field(None, description="for generation; absent: random")
    drift: bool = Field(False, description="keep a control chart of the session's own; replies tell it")
    inputs: dict[str, Json] | None = Field(
        None, description="the session's values of the model's settings: numbers or nested lists, by name"
    )


class Fork(Body):
    """How many sessions shall go on from one: as many as there are ids, or a number; one where nothing is said."""

    ids: Annotated[list[Id], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="absent: the server chooses"
    )
    count: Annotated[int, Field(ge=1, lt=2**32)] | None = Field(None, description="instead of ids")


class MakeCheckpoint(Body):
    """What to keep."""

    name: Id | None = Field(None, description="a name that is taken is given anew; absent: the server chooses")


class Rewind(Body):
    """Where to go back to."""

    checkpoint: str


class Upgrade(Body):
    """What to go on with."""

    version: str | None = Field(None, description="absent: the highest")


class Restore(BaseModel):
    """The query of a restoration: its body is the snapshot. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id | None = Field(None, description="absent: the server chooses", examples=["reader-2"])
    durable: bool = Field(False, description="whether a store keeps the session", examples=[False])
    ttl_seconds: Seconds | None = Field(
        None, description="lifetime from now; absent: as the session before had it", examples=[3600]
    )
    idle_seconds: Seconds | None = Field(
        None, description="lifetime from the last step; absent: as the session before had it", examples=[600]
    )
    drift: bool | None = Field(
        None, description="a control chart of its own; absent: as the session before had it", examples=[True]
    )


class Candidate(Document):
    """A possible next token."""

    token: str
    id: int
    probability: float


class Forecast(Document):
    """Quantiles of the target in data units, `values[horizon][quantile]`."""

    quantiles: list[float]
    values: list[list[float | None]]


class Surprise(Document):
    """How surprised the model was by its input: the mean over the steps and, with `every_step`, each."""

    mean: float | None
    unit: str
    steps: list[float | None] | None = None


class Drift(Document):
    """Where a session's own control chart over surprise is, after so many blocks of its steps."""

    state: Literal["normal", "warning", "drift"]
    ewma: float = Field(description="moving average of the blocks' means, in the unit of surprise")
    blocks: int


class Prediction(Document):
    """What the model says after `length` steps, by its task: `next`, `forecast` or `outputs`.

    Each tells the last step or, with `every_step`, is a list with one entry a step.
    """

    length: int
    next: list[Candidate] | list[list[Candidate]] | None = Field(None, description="most probable first")
    forecast: Forecast | list[Forecast] | None = None
    outputs: dict[str, list[Any] | float | int | bool | None] | None = Field(
        None, description="tensors by name, nested lists"
    )
    surprise: Surprise | None = None
    drift: Drift | None = Field(None, description="where the session was opened with `drift` and completed a block")


class StepReply(Document):
    """The session's position after the chunk, and the prediction."""

    session: str
    position: int
    prediction: Prediction


class PredictReply(Document):
    """A prediction for each sequence, in order."""

    model: str
    version: str
    predictions: list[Prediction]


class Generated(Document):
    """A generation's end. `text` is without the stop string, `tokens` are all that were consumed."""

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    position: int


class Session(Document):
    """A running sequence. `expires_at` is when it ends if no step comes, null where it never does."""

    id: str
    model: str
    version: str
    position: int = Field(description="steps consumed so far")
    durable: bool
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    state_bytes: int
    checkpoints: list[str] = Field(description="names, oldest first")
    origin: str = Field(description="the protocol through which it was opened: `v1` or `oip`")
    drift: Drift | None = Field(None, description="its own chart, from its first block on, where it asked for one")


class Forks(Document):
    """The sessions that were forked, in the order of their ids where those were given."""

    sessions: list[Session]


class Checkpoint(Document):
    """A retained checkpoint, and the session's position there."""

    checkpoint: str
    position: int


class SessionList(Document):
    """Some sessions by rising id; `next_page_token` is empty on the last page."""

    sessions: list[Session]
    next_page_token: str


class Tensor(Document):
    """A tensor of the model's graph; an axis is a name or a decimal number."""

    name: str
    dtype: str
    axes: list[str]
    unit: str | None = None
    description: str | None = None


class Setting(Document):
    """An input that is neither a sequence nor a state: `inputs` of a request or of a session set it."""

    name: str
    dtype: str
    shape: list[int] = Field(description="of one value; empty for one number")
    default: list[float] = Field(description="one number for all of it, or each in C order")
    unit: str | None = None
    description: str | None = None


class Column(Document):
    """What one of the features is."""

    name: str
    unit: str | None = None
    description: str | None = None


class SurpriseReport(Document):
    """How surprised a model was since the server started."""

    mean: float | None = Field(description="null before the first step")
    steps: int = Field(description="of sessions and sequences; what was generated does not count")


class DriftReport(Document):
    """A model's control chart over surprise, and what it is held against: see docs/monitoring.md."""

    state: Literal["normal", "warning", "drift"]
    ewma: float = Field(description="moving average of the blocks' means, in the unit of surprise")
    blocks: int = Field(description="blocks taken in since the server started")
    block: int = Field(description="steps of a block")
    mean: float = Field(description="of blocks where all is well")
    spread: float = Field(description="their standard deviation")
    warning: tuple[float, float] = Field(description="low and high limit of the average")
    drift: tuple[float, float] = Field(description="low and high limit of the average")


class Model(Document):
    """One loaded version of a model; `versions` are all of that name, rising."""

    name: str
    version: str
    versions: list[str]
    task: str
    cell: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    features: list[str] = Field(description="what a row of `values` holds, in order")
    state_bytes: int
    surprise_unit: str
    batch_invariant: bool
    sha256: str
    provider: str = Field(description="the onnxruntime execution provider in use")
    surprise: SurpriseReport | None = Field(None, description="null where the model tells none")
    drift: DriftReport | None = Field(None, description="null where the model was not calibrated")
    settings: list[Setting] = Field(description="what `inputs` may set, for a session or a request")
    sample_rate: float | None = Field(None, description="samples a second of the signal that callers send")
    frame_length: int | None = Field(None, description="samples of a step")
    columns: list[Column] = Field(description="the features of which a unit or a description is known")


class ModelList(Document):
    """Some models by name, then version; `next_page_token` is empty on the last page."""

    models: list[Model]
    next_page_token: str


class Refusal(Document):
    """A bundle that was not loaded, and why."""

    bundle: str
    reason: str
    message: str


class ReloadReport(Document):
    """What a reload did; versions are written `name/version`."""

    loaded: list[str]
    removed: list[str]
    refused: list[Refusal]


class Health(Document):
    """How the server is."""

    status: Literal["alive", "ready", "loading", "draining", "store away"]


class Problem(Document):
    """An error, by RFC 9457. Details such as `position` or `sequence` stand beside these members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="a URI that names the kind of problem")
    title: str
    status: int
    detail: str
    reason: str = Field(description="a stable word for programs")
