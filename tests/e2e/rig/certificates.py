"""A throw-away certificate authority, the server's certificate, and browser trust in them."""

import pathlib
import subprocess

from .lab import SERVER_NAME, SERVER_V4, SERVER_V6


class Certificates:
    """`authority`, `certificate` and `key` are PEM files made in `directory`."""

    def __init__(self, directory: pathlib.Path):
        directory.mkdir(parents=True)
        self.authority = directory / "ca.pem"
        self.certificate = directory / "cert.pem"
        self.key = directory / "key.pem"
        authority_key = directory / "ca-key.pem"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-noenc", "-days", "2"]
        run([*new, "-subj", "/CN=ferry e2e authority", "-keyout", str(authority_key), "-out", str(self.authority),
             "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
        run([*new, "-subj", f"/CN={SERVER_NAME}", "-keyout", str(self.key), "-out", str(self.certificate),
             "-CA", str(self.authority), "-CAkey", str(authority_key),
             "-addext", f"subjectAltName=DNS:{SERVER_NAME},IP:{SERVER_V4},IP:{SERVER_V6}",
             "-addext", "basicConstraints=critical,CA:FALSE",
             "-addext", "extendedKeyUsage=serverAuth"])

    def trust_in(self, database: pathlib.Path) -> None:
        """Makes an NSS database that trusts the authority for TLS servers."""
        database.mkdir(parents=True, exist_ok=True)
        run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"])
        run(["certutil", "-A", "-d", f"sql:{database}", "-n", "ferry e2e authority", "-t", "C,,",
             "-i", str(self.authority)])


def run(command: list[str]) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
