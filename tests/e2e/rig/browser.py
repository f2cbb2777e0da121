"""Browsers in client namespaces."""

import os
import pathlib
import shutil

from .certificates import Certificates
from .requirements import E2E
from .side import Side

CHROMIUM, FIREFOX = "chromium", "firefox"
EXECUTABLES = {CHROMIUM: "chromium", FIREFOX: "firefox-esr"}


class Browser(Side):
    """One browser in `namespace` with a fresh profile, driven through browser/side.mjs."""

    def __init__(self, kind: str, namespace: str, directory: pathlib.Path, certificates: Certificates):
        self.home = directory / f"{kind}-{namespace}-home"
        shutil.rmtree(self.home, ignore_errors=True)
        profile = self.home / "profile"
        profile.mkdir(parents=True)
        certificates.trust_in(profile if kind == FIREFOX else self.home / ".pki/nssdb")
        command = ["node", str(E2E / "browser/side.mjs"), kind, shutil.which(EXECUTABLES[kind]), str(profile)]
        super().__init__(f"{kind} in {namespace}", namespace, command, directory / f"{kind}-{namespace}.log",
                         {**os.environ, "HOME": str(self.home)})

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.home, ignore_errors=True)


class Browsers:
    """Starts browsers when first asked for and keeps them for later calls."""

    def __init__(self, directory: pathlib.Path, certificates: Certificates):
        self.directory = directory
        self.certificates = certificates
        self.running: dict[tuple[str, str], Browser] = {}

    def get(self, kind: str, namespace: str) -> Browser:
        key = (kind, namespace)
        if key not in self.running:
            self.running[key] = Browser(kind, namespace, self.directory, self.certificates)
        return self.running[key]

    def stop(self) -> None:
        while self.running:
            self.running.popitem()[1].stop()
