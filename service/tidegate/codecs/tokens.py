"""Task ``next_token``: characters or ids in, the most probable next tokens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tidegate.api import Candidate, FloatArray, Input, Prediction, Predictions, Rows, StepOptions, Surprise, Tensor
from tidegate.bundle import Bundle, Manifest, TokenCodec, Vocabulary
from tidegate.codecs.rows import FEW, check_input, check_output, check_tokens, kind_of, mean_surprise, told
from tidegate.errors import BundleError, InvalidInputError

_CANDIDATE_BYTES = 80  # one candidate as JSON: keys, token, id and a probability of 20 digits
_STEP_BYTES = 64
_LONG_TEXT = 32  # characters, from which on an array is looked up faster than one after the other
_NONE = -1


class Tokens:
    """Maps a vocabulary to ids and logits to candidates."""

    def __init__(self, tokens: Sequence[str], unknown: int | None, spec: TokenCodec) -> None:
        self.tokens = tuple(tokens)
        self.surprise_unit = spec.surprise_unit if spec.surprise else ""
        self.kept_output: str | None = spec.output
        self._logits = spec.output
        self._surprise = spec.surprise
        self._unknown = unknown
        self._unknown_id = _NONE if unknown is None else unknown
        self._has_text = all(len(token) == 1 for token in self.tokens)
        self._ids = {token: id_ for id_, token in enumerate(self.tokens)} if self._has_text else {}
        self._by_code = _by_code(self._ids, unknown) if self._has_text else np.empty(0, np.int64)
        # One read-only array a token: the single step of a stream, the hottest input, costs a look-up.
        self._singles = tuple(np.array([id_], dtype=np.int64) for id_ in range(len(self.tokens)))

    @classmethod
    def load(cls, bundle: Bundle, spec: TokenCodec) -> Tokens:
        try:
            vocabulary = bundle.read(spec.vocabulary, Vocabulary)
            _check_vocabulary(vocabulary, bundle.manifest, spec)
        except ValueError as error:
            raise BundleError(f"{bundle.path}/{spec.vocabulary}: not a vocabulary ({error})") from error
        return cls(vocabulary.tokens, vocabulary.unknown, spec)

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        text = source.text
        if text is not None and len(text) == 1 and source.tokens is None and source.values is None:
            id_ = self._ids.get(text)
            if id_ is not None:
                return (self._singles[id_],)
        if source.tokens is not None and text is None and source.values is None:
            return (self._encode_tokens(source.tokens),)
        kind = kind_of(source)
        if kind == "values":
            raise InvalidInputError("this model takes text or tokens, not values", reason="WRONG_KIND")
        assert text is not None
        return (self._encode_text(text),)

    def _encode_tokens(self, tokens: Sequence[int]) -> Tensor:
        if len(tokens) == 1 and 0 <= tokens[0] < len(self._singles):
            return self._singles[tokens[0]]
        return check_tokens(tokens, len(self.tokens))

    def _encode_text(self, text: str) -> Tensor:
        if not self._has_text:
            raise InvalidInputError("this model's tokens are not characters: send tokens", reason="WRONG_KIND")
        if not text:
            raise InvalidInputError("the sequence is empty: text needs at least one character", reason="EMPTY_SEQUENCE")
        if len(text) < _LONG_TEXT:
            get = self._ids.get
            ids = np.array([get(character, self._unknown_id) for character in text], dtype=np.int64)
        else:
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            ids = self._by_code[np.minimum(codes, len(self._by_code) - 1)]
        if self._unknown is None and ids.min() < 0:
            where = int(ids.argmin())
            raise InvalidInputError(f"unknown character {text[where]!r} at step {where}", reason="UNKNOWN_TOKEN")
        return ids

    def reply_bytes(self, length: int, options: StepOptions) -> int:
        steps = length if options.every_step else 1
        return steps * (_STEP_BYTES + min(options.top, len(self.tokens)) * _CANDIDATE_BYTES)

    def read(self, outputs: Mapping[str, Tensor], rows: slice | Sequence[int], length: int, top: int) -> Predictions:
        ids, probabilities = top_candidates(outputs[self._logits][rows, -1], top)
        means = None
        if self._surprise is not None:
            surprises = outputs[self._surprise]
            means = (surprises[:, 0] if length == 1 else surprises.mean(axis=1))[rows]
        return Predictions(length, ids, probabilities, surprise=means)

    def split(self, predictions: Predictions) -> list[Prediction]:
        assert predictions.ids is not None
        assert predictions.probabilities is not None
        length, unit = predictions.length, self.surprise_unit
        if predictions.ids.shape[1] > FEW:
            return self._split_large(predictions, predictions.ids, predictions.probabilities)
        steps = self._candidates(predictions.ids, predictions.probabilities)
        if predictions.surprise is None:
            return [Prediction(length, next=[step]) for step in steps]
        return [
            Prediction(length, next=[step], surprise=Surprise(mean, unit))
            for step, mean in zip(steps, predictions.surprise.tolist(), strict=True)
        ]

    def _split_large(self, predictions: Predictions, ids: Tensor, probabilities: Tensor) -> list[Prediction]:
        length, unit, found = predictions.length, self.surprise_unit, []
        means = [None] * len(ids) if predictions.surprise is None else predictions.surprise.tolist()
        for row, mean in enumerate(means):
            rows = Rows(self._candidates, ids[row : row + 1].astype(np.int32), probabilities[row : row + 1].copy())
            surprise = None if mean is None else Surprise(mean, unit)
            found.append(Prediction(length, next=rows, surprise=surprise))
        return found

    def cut(self, outputs: Mapping[str, Tensor], row: int, options: StepOptions, *, is_last: bool) -> dict[str, Tensor]:
        logits = outputs[self._logits][row]
        steps = logits if options.every_step else logits[-1:] if is_last else logits[:0]
        ids, probabilities = top_candidates(steps, options.top)
        piece: dict[str, Tensor] = {"ids": ids, "probabilities": probabilities}
        if self._surprise is not None:
            piece[self._surprise] = outputs[self._surprise][row].copy()
        return piece

    def join(self, pieces: Sequence[Mapping[str, Tensor]], length: int, options: StepOptions) -> Prediction:
        ids = np.concatenate([piece["ids"] for piece in pieces]).astype(np.int32)
        probabilities = np.concatenate([piece["probabilities"] for piece in pieces])
        rows = told(self._candidates, ids, probabilities)
        surprise = mean_surprise(pieces, self._surprise, self.surprise_unit, options)
        return Prediction(length, options.every_step, next=rows, surprise=surprise)

    def _candidates(self, ids: Tensor, probabilities: Tensor) -> list[list[Candidate]]:
        tokens = self.tokens
        return [
            [Candidate(tokens[id_], id_, probability) for id_, probability in zip(some, their, strict=True)]
            for some, their in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]


def _by_code(ids: Mapping[str, int], unknown: int | None) -> NDArray[np.int64]:
    """Return the id of each character by its code point; the last entry stands for all that lie beyond."""
    table = np.full(max(map(ord, ids), default=0) + 2, _NONE if unknown is None else unknown, np.int64)
    for character, id_ in ids.items():
        table[ord(character)] = id_
    return table


def _check_vocabulary(vocabulary: Vocabulary, manifest: Manifest, spec: TokenCodec) -> None:
    """Raise ValueError unless the graph takes ids and its logits have a column for each of the tokens."""
    tokens, unknown = vocabulary.tokens, vocabulary.unknown
    check_input(manifest, "int64", ())
    (width,) = check_output(manifest, spec.output, 1)
    if spec.surprise is not None:
        check_output(manifest, spec.surprise, 0)
    if isinstance(width, int) and len(tokens) != width:
        raise ValueError(f"{len(tokens)} tokens for {width} logits")
    if len(set(tokens)) != len(tokens):
        raise ValueError("a token is there twice")
    if unknown is not None and not 0 <= unknown < len(tokens):
        raise ValueError(f"the unknown token {unknown} is not among the {len(tokens)}")


def top_candidates(logits: FloatArray | Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return ids and softmax probabilities, each [steps, k], of the ``top`` largest of ``logits`` [steps,
    vocabulary], largest first.
    """
    steps, size = logits.shape
    scores = logits.astype(np.float32, copy=False)
    if top == 1 and steps:
        # The commonest question, and the cheapest: the largest score's own exponential is 1.
        ids = scores.argmax(axis=1)[:, None]
        exponentials = scores - scores[np.arange(steps)[:, None], ids]
        return ids, 1 / np.exp(exponentials, out=exponentials).sum(axis=1, keepdims=True)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf)) if steps else scores
    if top >= size:
        ids = np.argsort(-scores, axis=1, kind="stable")
    else:
        unordered = np.argpartition(-scores, top, axis=1)[:, :top]
        order = np.argsort(-np.take_along_axis(scores, unordered, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(unordered, order, axis=1)
    chosen = exponentials[np.arange(steps)[:, None], ids]  # take_along_axis builds the same index, slowly
    return ids, chosen / exponentials.sum(axis=1, keepdims=True)
