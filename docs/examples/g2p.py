"""Weights that come as arrays, made into a bundle: the GRUs of g2p-en, which spell English words in phonemes.

The package (Apache-2.0) ships no model file, only `checkpoint20.npz` and a loop in numpy. Its arrays have the shapes
and the order of gates of PyTorch's GRU, so they load as they are.

    pip install --no-deps g2p-en==2.1.0
    tidegate export docs/examples/g2p.py:encoder --name g2p-encoder --input tokens     # one GRU as a layer
    python docs/examples/g2p.py g2p.onnx                                               # both, one letter a run …
    tidegate import g2p.onnx --name g2p                                                # … and its state found
    tidegate serve
    python docs/examples/g2p.py --spell tidegate
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tidegate.client import Client

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()  # noqa: SIM905
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()  # noqa: SIM905
STRESSED = [f"{vowel}{stress}" for vowel in VOWELS for stress in range(3)]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS, "UW"])]
SIZE = 256
MOST_PHONEMES = 20


def checkpoint() -> dict[str, Tensor]:
    """Return the arrays of the installed package, without importing it: that would fetch corpora."""
    spec = importlib.util.find_spec("g2p_en")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("pip install --no-deps g2p-en==2.1.0")
    with np.load(Path(spec.submodule_search_locations[0]) / "checkpoint20.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


class Encoder(nn.Module):
    """Letters [batch, time] → the GRU's hidden state after each [batch, time, 256]."""

    def __init__(self) -> None:
        super().__init__()
        arrays = checkpoint()
        self.embedding = nn.Embedding(len(LETTERS), SIZE, _weight=arrays["enc_emb"])
        self.gru = nn.GRU(SIZE, SIZE, batch_first=True)
        load(self.gru, arrays, "enc", "_l0")

    def forward(self, letters: Tensor) -> Tensor:
        outputs: Tensor = self.gru(self.embedding(letters))[0]
        return outputs


class Speller(nn.Module):
    """One token [batch] and the state [batch, 256] → logits of the next phoneme [batch, 74], and the state after it.

    A letter takes the encoder's step, a phoneme (counted on behind the letters) the decoder's, which goes on from the
    state that the encoder left.
    """

    def __init__(self) -> None:
        super().__init__()
        arrays = checkpoint()
        both = torch.cat([arrays["enc_emb"], arrays["dec_emb"]])
        self.embedding = nn.Embedding(len(both), SIZE, _weight=both)
        self.read, self.write = nn.GRUCell(SIZE, SIZE), nn.GRUCell(SIZE, SIZE)
        load(self.read, arrays, "enc")
        load(self.write, arrays, "dec")
        self.head = nn.Linear(SIZE, len(PHONEMES))
        self.head.load_state_dict({"weight": arrays["fc_w"], "bias": arrays["fc_b"]})

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embedding(token)
        is_letter = (token < len(LETTERS)).unsqueeze(1)
        state = torch.where(is_letter, self.read(embedded, state), self.write(embedded, state))
        return self.head(state), state


def load(gru: nn.Module, arrays: dict[str, Tensor], part: str, suffix: str = "") -> None:
    """Fill a GRU or its cell: PyTorch's names are weight_ih, weight_hh, bias_ih, bias_hh."""
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    gru.load_state_dict({f"{ours}{suffix}": arrays[f"{part}_{theirs}"] for ours, theirs in names.items()})


def encoder() -> nn.Module:
    """What `tidegate export docs/examples/g2p.py:encoder` calls."""
    return Encoder()


def write_speller(path: Path) -> None:
    """Write the ONNX file that `tidegate import` reads: one run is one step, the batch is free."""
    rows = torch.export.Dim("batch")
    torch.onnx.export(
        Speller().eval(),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, SIZE)),
        path,
        dynamo=True,
        verbose=False,
        input_names=["token", "state_in"],
        output_names=["logits", "state_out"],
        dynamic_shapes=({0: rows}, {0: rows}),
    )


def spell(client: Client, word: str, model: str = "g2p") -> list[str]:
    """Return a word's phonemes: its letters in one chunk, then each phoneme as the next step."""
    letters = [LETTERS.index(letter) if letter in LETTERS else 1 for letter in word.lower()]
    tokens = [*letters, LETTERS.index("</s>"), len(LETTERS) + PHONEMES.index("<s>")]
    spelled: list[str] = []
    with client.open(model) as session:
        while len(spelled) < MOST_PHONEMES:
            outputs = session.step(tokens=tokens).prediction.outputs or {}
            best = int(outputs["logits"][-1].argmax())
            if PHONEMES[best] == "</s>":
                break
            spelled.append(PHONEMES[best])
            tokens = [len(LETTERS) + best]
    return spelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="write the ONNX file here")
    parser.add_argument("--spell", metavar="WORD", nargs="+", help="words, asked of a running server")
    parser.add_argument("--grpc", default="127.0.0.1:8081")
    arguments = parser.parse_args()
    if arguments.file is not None:
        write_speller(arguments.file)
    if arguments.spell is not None:
        from tidegate.client import Client

        with Client(arguments.grpc) as client:
            for word in arguments.spell:
                print(" ".join(spell(client, word)))


if __name__ == "__main__":
    main()
