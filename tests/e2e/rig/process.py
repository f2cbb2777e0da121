"""Programs run inside a namespace, with their output in a file."""

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

STOP_SECONDS = 10


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls `condition` until it holds; raises `TimeoutError` naming `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


class Program:
    """One program in a namespace; stdout and stderr are appended to `log`."""

    def __init__(self, namespace: str, command: list[str], log: pathlib.Path, **popen):
        self.log = log
        with open(log, "ab") as output:
            popen.setdefault("stdout", output)
            popen.setdefault("stderr", output)
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *command], start_new_session=True, **popen
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the program, by force after `STOP_SECONDS`; returns its exit status."""
        if self.is_running():
            self.signal_group(number)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        self.signal_group(signal.SIGKILL)
        return self.process.wait()


def run_in(namespace: str, command: list[str], seconds: float = 60) -> str:
    """Runs a short program to its end; returns stdout and stderr, raises on a bad exit status."""
    result = subprocess.run(
        ["ip", "netns", "exec", namespace, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: status {result.returncode}: {result.stdout.strip()}")
    return result.stdout
