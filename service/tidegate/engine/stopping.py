"""Stop strings over a stream of tokens: text is held back while it may still become one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.core import GeneratedToken


class StopMatcher:
    """Releases tokens as soon as no stop string can begin in their text.

    ``text`` and ``tokens`` are what was told so far; a stop string's tokens are told, its text is not.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held: list[GeneratedToken] = []
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
        if not self._stops:
            self.tokens.append(token)
            self._parts.append(text)
            return [item], False
        self._held.append(item)
        held = "".join(item.text for item in self._held)
        found = [where for stop in self._stops if (where := held.find(stop)) >= 0]
        if found:
            return self._release_up_to(min(found)), True
        return self._release_certain(len(held) - self._open_suffix(held)), False

    def flush(self) -> list[GeneratedToken]:
        """Release what is held: the generation ended and no stop string came."""
        return self._release([*self._held])

    def _open_suffix(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

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
        self.tokens.extend(item.id for item in items)
        self._parts.extend(item.text for item in items)
        return items
