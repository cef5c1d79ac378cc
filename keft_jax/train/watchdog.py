"""A thread that says where a run hangs: all stacks, in a file of the run's directory.

Steps hang where another process is gone, a disk does not answer, a lock is not given back. The run
goes on by itself when that is over; with `watch.abort` it ends, for what started it to start it
again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from keft_jax.config import WatchConfig

TRY_AGAIN = 75
"""Exit status of a run that is ended here: EX_TEMPFAIL of sysexits.h."""
WRITING = 10
"""Seconds that the stacks have to be written: it may be their disk that hangs."""
_last = time.monotonic()


def beat() -> None:
    """Something got done: a batch went to the devices, or its results came back."""
    global _last
    _last = time.monotonic()


@contextlib.contextmanager
def watch(config: WatchConfig, folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """While it is open: the stacks of all threads go to `folder/stall-PROCESS.txt` once nothing was
    done for `stall` seconds; the process ends after `abort`."""
    over = threading.Event()
    file = folder / f"stall-{jax.process_index()}.txt"

    def look() -> None:
        reported: float | None = None  # the beat since which it was said
        while not over.wait(min(config.stall / 4, 1.0)):
            last = _last
            idle = time.monotonic() - last
            if idle >= config.stall and reported != last:
                reported = last
                where = _dump(file, f"nothing was done for {idle:.0f} seconds")
                warn(f"nothing was done for {idle:.0f} seconds; {where}")
            if config.abort and idle >= config.abort:
                where = _dump(file, f"ended after {idle:.0f} seconds (watch.abort)")
                warn(f"nothing was done for {idle:.0f} seconds (watch.abort); ended, {where}")
                os._exit(TRY_AGAIN)  # what hangs cannot be asked to end

    if not config.stall:
        yield
        return
    beat()
    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _dump(file: Path, reason: str) -> str:
    """Where the stacks are."""
    result = ["its disk does not answer"]

    def write() -> None:
        try:
            with file.open("a") as out:
                print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {reason}", file=out, flush=True)
                faulthandler.dump_traceback(out, all_threads=True)
            result[0] = ""
        except OSError as error:
            result[0] = str(error)

    writer = threading.Thread(target=write, name="stacks", daemon=True)
    writer.start()
    writer.join(WRITING)
    if not result[0]:
        return f"what is waited for is in {file}"
    return f"what is waited for could not be written to {file}: {result[0]}"
