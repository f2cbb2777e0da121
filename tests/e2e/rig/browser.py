"""Browsers in client namespaces, and calls between two of them."""

import concurrent.futures
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import threading
from typing import Any

from .certificates import Certificates
from .process import Program
from .requirements import E2E

CHROMIUM, FIREFOX = "chromium", "firefox"
EXECUTABLES = {CHROMIUM: "chromium", FIREFOX: "firefox-esr"}
START_SECONDS = 120


class Browser:
    """One browser in `namespace` with a fresh profile, driven through browser/side.mjs."""

    def __init__(self, kind: str, namespace: str, directory: pathlib.Path, certificates: Certificates):
        self.name = f"{kind} in {namespace}"
        self.home = directory / f"{kind}-{namespace}-home"
        shutil.rmtree(self.home, ignore_errors=True)
        profile = self.home / "profile"
        profile.mkdir(parents=True)
        certificates.trust_in(profile if kind == FIREFOX else self.home / ".pki/nssdb")
        self.pending: dict[int, concurrent.futures.Future] = {}
        self.ids = itertools.count()
        self.program = Program(
            namespace,
            ["node", str(E2E / "browser/side.mjs"), kind, shutil.which(EXECUTABLES[kind]), str(profile)],
            directory / f"{kind}-{namespace}.log",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(self.home)},
        )
        threading.Thread(target=self.read_answers, daemon=True).start()

    def read_answers(self) -> None:
        for line in self.program.process.stdout:
            message = json.loads(line)
            future = self.pending.pop(message["id"])
            if "error" in message:
                future.set_exception(RuntimeError(f"{self.name}: {message['error']}"))
            else:
                future.set_result(message["result"])
        for future in list(self.pending.values()):
            future.set_exception(RuntimeError(f"{self.name} ended, see {self.program.log}"))

    def begin(self, call: str, argument: Any = None) -> concurrent.futures.Future:
        """Asks the page for `call`; the future holds its result."""
        identifier = next(self.ids)
        future = self.pending[identifier] = concurrent.futures.Future()
        line = json.dumps({"id": identifier, "call": call, "argument": argument})
        try:
            self.program.process.stdin.write(line.encode() + b"\n")
            self.program.process.stdin.flush()
        except BrokenPipeError:
            future.set_exception(RuntimeError(f"{self.name} ended, see {self.program.log}"))
        return future

    def stop(self) -> None:
        """Closes the browser by closing its driver's input."""
        try:
            self.program.process.stdin.close()
            self.program.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        self.program.stop()
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


class Call:
    """A call between two browsers; candidates travel in the descriptions."""

    def __init__(self, caller: Browser, callee: Browser):
        self.sides = [caller, callee]

    def both(self, call: str, argument: Any = None, seconds: float = 60) -> list[Any]:
        """Asks both sides at once; returns the results of caller and callee."""
        futures = [side.begin(call, argument) for side in self.sides]
        return [self.result(future, side, call, seconds) for future, side in zip(futures, self.sides)]

    def one(self, side: Browser, call: str, argument: Any = None, seconds: float = 60) -> Any:
        return self.result(side.begin(call, argument), side, call, seconds)

    def result(self, future: concurrent.futures.Future, side: Browser, call: str, seconds: float) -> Any:
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{side.name}: {call}: not within {seconds:g} s") from None

    def establish(self, configuration: dict, video: bool) -> list[list[str]]:
        """Exchanges descriptions; returns the candidate types that caller and callee gathered."""
        caller, callee = self.sides
        self.both("newPage", seconds=START_SECONDS)
        self.both("open", {"configuration": configuration, "video": video})
        offer = self.one(caller, "offer")
        answer = self.one(callee, "answer", offer)
        self.one(caller, "accept", answer)
        for side, description in ((caller, offer), (callee, answer)):
            if not description["types"]:
                raise AssertionError(f"{side.name} gathered no candidates: {', '.join(description['candidateErrors'])}")
        return [offer["types"], answer["types"]]
