"""A plain FastAPI handler that runs the graph for each request. Served by uvicorn with uvloop and httptools."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.lstm import Answer, Lstm

app = FastAPI()
lstm = Lstm()


class Step(BaseModel):
    """A token of a session."""

    session: str
    token: int


@app.post("/step")
async def step(body: Step) -> Answer:
    # A run takes less time than handing it to a thread would.
    return lstm.step(body.session, body.token)
