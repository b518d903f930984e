"""BentoML: one worker, a run for each request. `bentoml serve bench.peers.bentoml.app:Steps`.

Its adaptive batching (``batchable=True``) was tried: for steps as short as these it costs more than it gives (around
550 steps/s with 64 sessions, where this carries 1,060, both on a busy machine).
"""

from __future__ import annotations

import bentoml
from pydantic import BaseModel

from bench.peers.lstm import Lstm


class Reply(BaseModel):
    """The answer to a step."""

    position: int
    id: int
    probability: float
    surprise: float


@bentoml.service(workers=1)
class Steps:
    """A token of a session, and what the model says to it."""

    def __init__(self) -> None:
        self._lstm = Lstm()

    @bentoml.api
    async def step(self, session: str, token: int) -> Reply:
        # Asynchronous though nothing is awaited: a run takes less time than handing it to a thread would.
        answer = self._lstm.step(session, token)
        return Reply(position=answer.position, id=answer.id, probability=answer.probability, surprise=answer.surprise)
