"""One side of a call: a program in a namespace that answers JSON lines, and calls between two of them."""

import concurrent.futures
import itertools
import json
import pathlib
import subprocess
import threading
from typing import Any

from .process import Program

START_SECONDS = 120


class Side:
    """A program in `namespace` that is asked {id, call, argument} and answers {id, result} or {id, error}."""

    def __init__(self, name: str, namespace: str, command: list[str], log: pathlib.Path, env: dict[str, str]):
        self.name = name
        self.pending: dict[int, concurrent.futures.Future] = {}
        self.ids = itertools.count()
        self.program = Program(namespace, command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
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
        """Ends the program by closing its input."""
        try:
            self.program.process.stdin.close()
            self.program.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        self.program.stop()


class Call:
    """A call between two sides; candidates travel in the descriptions."""

    def __init__(self, caller: Side, callee: Side):
        self.sides = [caller, callee]

    def both(self, call: str, argument: Any = None, seconds: float = 60) -> list[Any]:
        """Asks both sides at once; returns the results of caller and callee."""
        futures = [side.begin(call, argument) for side in self.sides]
        return [self.result(future, side, call, seconds) for future, side in zip(futures, self.sides)]

    def one(self, side: Side, call: str, argument: Any = None, seconds: float = 60) -> Any:
        return self.result(side.begin(call, argument), side, call, seconds)

    def result(self, future: concurrent.futures.Future, side: Side, call: str, seconds: float) -> Any:
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{side.name}: {call}: not within {seconds:g} s") from None

    def establish(self, configuration: dict, media: bool) -> list[list[str]]:
        """Exchanges descriptions; returns the candidate types that caller and callee gathered."""
        caller, callee = self.sides
        self.both("newPage", seconds=START_SECONDS)
        self.both("open", {"configuration": configuration, "media": media})
        offer = self.one(caller, "offer")
        answer = self.one(callee, "answer", offer)
        self.one(caller, "accept", answer)
        for side, description in ((caller, offer), (callee, answer)):
            if not description["types"]:
                raise AssertionError(f"{side.name} gathered no candidates: {', '.join(description['candidateErrors'])}")
        return [offer["types"], answer["types"]]
