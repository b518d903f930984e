"""What a sequence gives that nothing ever interrupted: the graph stepped in onnxruntime, one step at a time.

Sequences are nodes of a tree, so that sessions and branches that begin alike share what is computed. Knows nothing of
sessions or of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.chaos.history import Reply
from tidegate.bundle import read_bundle
from tidegate.replay import GraphRunner, Result


class Sequence:
    """A sequence of tokens from the start; equal sequences are the same object."""

    def __init__(self, runner: GraphRunner, parent: Sequence | None = None, token: int = -1) -> None:
        self.parent = parent
        self.position: int = 0 if parent is None else parent.position + 1
        self.token = token
        self._runner = runner
        self._children: dict[int, Sequence] = {}

    def then(self, tokens: Iterable[int]) -> Sequence:
        """The sequence that goes on with ``tokens``."""
        node = self
        for token in tokens:
            if token not in node._children:
                node._children[token] = Sequence(self._runner, node, token)
            node = node._children[token]
        return node

    def backwards(self) -> Iterator[Sequence]:
        """This sequence, then without its last token, and so on to the empty one."""
        node: Sequence | None = self
        while node is not None:
            yield node
            node = node.parent

    def gives(self, reply: Reply, length: int) -> bool:
        """Whether the model says ``reply`` to the last ``length`` tokens, within the project's tolerance."""
        return (
            reply.position == self.position
            and _equal(reply.surprise, self.surprise(length))
            and 0 <= reply.best < len(self.probabilities)
            and _equal(reply.probability, float(self.probabilities[reply.best]))
            and _equal(reply.probability, float(self.probabilities.max()))
        )

    def reply(self, length: int) -> Reply:
        """What a right server answers to the last ``length`` tokens."""
        best = int(self.probabilities.argmax())
        return Reply(self.position, self.surprise(length), best, float(self.probabilities[best]))

    def surprise(self, length: int) -> float:
        """The mean over the last ``length`` tokens, in bits."""
        steps = [node._surprise for node, _ in zip(self.backwards(), range(length), strict=False)]  # noqa: SLF001
        return float(np.mean(steps))

    @cached_property
    def probabilities(self) -> NDArray[np.floating]:
        """Of each token to come next; [vocabulary]."""
        logits = self._result.outputs["logits"][0, -1].astype(np.float64)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    @cached_property
    def states(self) -> dict[str, NDArray[np.generic]]:
        """By the names of the graph's inputs, with a batch of one."""
        return self._runner.initial(1) if self.parent is None else self._result.states

    @cached_property
    def _surprise(self) -> float:
        return float(self._result.outputs["surprise"][0, -1])

    @cached_property
    def _result(self) -> Result:
        # Each step needs the one before: computed from the oldest on, for long sequences would nest too deep.
        missing = []
        for node in self.backwards():
            if node.parent is None or "states" in node.__dict__:
                break
            missing.append(node)
        for node in reversed(missing[1:]):
            _ = node.states
        assert self.parent is not None, "nothing is said before the first step"
        return self._runner.run({"tokens": np.array([[self.token]], np.int64)}, self.parent.states)


def empty_sequence(bundle: Path) -> Sequence:
    """The beginning of all sequences through a bundle of the task `next_token`."""
    found = read_bundle(bundle)
    return Sequence(GraphRunner(found.graph, found.manifest))


def _equal(left: float, right: float) -> bool:
    return abs(left - right) <= 1e-5 + 1e-4 * abs(right)
