"""Stop strings over a stream of tokens: text is held back while it may still become one. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tidegate.api import GeneratedToken


class StopMatcher:
    """Releases tokens as soon as no stop string can begin in their text.

    ``text`` and ``tokens`` are what was told so far; a stop string's tokens are told, its text is not.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        found = [stop for stop in stops if stop]
        self._automaton = _Automaton(found) if found else None
        self._node = 0
        self._held: list[GeneratedToken] = []
        self._num_held = 0  # characters
        self._parts: list[str] = []
        self.tokens: list[int] = []

    @property
    def text(self) -> str:
        """The released text."""
        return "".join(self._parts)

    @property
    def num_tokens(self) -> int:
        """Tokens pushed so far, released or held."""
        return len(self.tokens) + len(self._held)

    def push(self, token: int, text: str, position: int) -> tuple[list[GeneratedToken], bool]:
        """Take a token in; return the tokens that are now certain, and whether a stop string is complete."""
        item = GeneratedToken(token, text, position)
        automaton = self._automaton
        if automaton is None:
            self.tokens.append(token)
            self._parts.append(text)
            return [item], False
        self._held.append(item)
        starts = []
        for character in text:
            self._num_held += 1
            self._node = automaton.step(self._node, character)
            if length := automaton.matched[self._node]:
                starts.append(self._num_held - length)
        if starts:
            return self._release_up_to(min(starts)), True
        return self._release_certain(self._num_held - automaton.depths[self._node]), False

    def flush(self) -> list[GeneratedToken]:
        """Release what is held: the generation ended and no stop string came."""
        return self._release([*self._held])

    def _release_certain(self, size: int) -> list[GeneratedToken]:
        """Release the tokens that lie wholly within the first ``size`` characters held."""
        whole, used = 0, 0
        for item in self._held:
            used += len(item.text)
            if used > size:
                break
            whole += 1
        return self._release(self._held[:whole])

    def _release_up_to(self, size: int) -> list[GeneratedToken]:
        """Release every held token, with its text only as far as the first ``size`` characters."""
        cut, used = [], 0
        for item in self._held:
            cut.append(item._replace(text=item.text[: max(0, size - used)]))
            used += len(item.text)
        return self._release(cut)

    def _release(self, items: list[GeneratedToken]) -> list[GeneratedToken]:
        del self._held[: len(items)]
        self._num_held -= sum(len(item.text) for item in items)
        self.tokens.extend(item.id for item in items)
        self._parts.extend(item.text for item in items)
        return items


class _Automaton:
    """Which strings a text ends with, character by character, however many there are (Aho and Corasick 1975).

    A node is a beginning of some of the strings, and stands for the longest end of the text that is one; node 0 is the
    empty one. ``depths`` are the nodes' lengths, ``matched`` those of the longest whole string that each ends with.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the node of the longest other beginning that a node ends with
        self.depths = [0]
        self.matched = [0]
        for string in strings:
            self._add(string)
        self._link()

    def step(self, node: int, character: str) -> int:
        """Return the node after one more character."""
        while (following := self._next[node].get(character)) is None and node:
            node = self._shorter[node]
        return following or 0

    def _add(self, string: str) -> None:
        node = 0
        for depth, character in enumerate(string, 1):
            children = self._next[node]
            if character not in children:
                children[character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depths.append(depth)
                self.matched.append(0)
            node = children[character]
        self.matched[node] = len(string)

    def _link(self) -> None:
        """Find each node's shorter one, the short nodes' first."""
        waiting = deque(self._next[0].values())
        while waiting:
            node = waiting.popleft()
            self.matched[node] = self.matched[node] or self.matched[self._shorter[node]]
            for character, child in self._next[node].items():
                self._shorter[child] = self.step(self._shorter[node], character)
                waiting.append(child)
