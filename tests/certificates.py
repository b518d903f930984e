"""Certificates for tests: an authority, and what it signs; by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.programs import program


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates that are valid for ``localhost`` and the loopback addresses. Its files lie in ``folder``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._openssl = program("openssl")
        self.own = self._pair(name)
        self._run(
            ["req", "-x509", "-new", "-key", str(self.own.key), "-days", "2", "-subj", f"/CN={name}"],
            self.own.certificate,
        )

    def sign(self, subject: str, name: str) -> Pair:
        """Make a key and a certificate of ``subject``, ``/O=tidegate/CN=ann``, in files called ``name``."""
        pair, request = self._pair(name), self._folder / f"{name}.csr"
        self._run(["req", "-new", "-key", str(pair.key), "-subj", subject], request)
        extensions = self._folder / "extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
        signer = ["-CA", str(self.own.certificate), "-CAkey", str(self.own.key), "-CAcreateserial"]
        self._run(
            ["x509", "-req", "-in", str(request), *signer, "-days", "2", "-extfile", str(extensions)], pair.certificate
        )
        return pair

    def _pair(self, name: str) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        self._run(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], pair.key)
        return pair

    def _run(self, arguments: list[str], out: Path) -> None:
        subprocess.run([self._openssl, *arguments, "-out", str(out)], check=True, capture_output=True)
