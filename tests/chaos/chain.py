"""A stage whose final bytes are known: a chain of SHA-256 over many small steps.

    python chain.py NAME STEPS PACE WITNESS [BEFORE]

Standard library and `condorctl.job` alone. Sleeps PACE seconds a step; goes on from its checkpoint.
WITNESS is a folder outside of the sandbox, "" for none, where each start and each step is told as
it happens: so what was done twice is known whatever becomes of the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import IO

from condorctl.job import checkpoint, progress, save

EPOCH = 10  # steps
BALLAST = "ballast.bin"
_BALLAST_BYTES = 48 << 20


def link(digest: str, step: int) -> str:
    return hashlib.sha256(f"{digest} {step}".encode()).hexdigest()


def final(name: str, steps: int, before: str = "") -> str:
    """What a whole chain ends with."""
    digest = before or name
    for step in range(1, steps + 1):
        digest = link(digest, step)
    return digest


def ballast() -> bytes:
    """Something large enough to be cut off while it is fetched."""
    return b"".join(hashlib.sha256(bytes([n])).digest() * 32 for n in range(256)) * (
        _BALLAST_BYTES // (256 * 1024)
    )


def _witness(folder: str, name: str) -> IO[str] | None:
    if not folder:
        return None
    ad = Path(os.environ["_CONDOR_JOB_AD"]).read_text()
    run = re.search(r'(?m)^JobBatchName = "(.*)"$', ad)
    assert run
    return (Path(folder) / f"{run[1]}.{name}").open("a", buffering=1)


def main(name: str, steps: int, pace: float, witness: str, before: str = "") -> None:
    begin = Path(before).read_text() if before else name
    state = checkpoint.load(read=lambda path: json.loads(Path(path).read_text()))
    state = state or {"step": 0, "digest": begin}
    told = _witness(witness, name)
    if told:
        print(f"start {os.getpid()} {state['step']} {time.time():.2f}", file=told)
        Path(BALLAST).write_bytes(ballast())
    for step in range(state["step"] + 1, steps + 1):
        time.sleep(pace)
        state = {"step": step, "digest": link(state["digest"], step)}
        if told:
            print(f"step {os.getpid()} {step} {time.time():.2f}", file=told)
        if step % EPOCH == 0:
            value = int(state["digest"][:8], 16) / (1 << 32)
            progress(epoch=step // EPOCH, epochs=steps // EPOCH, value=value)
        if checkpoint.due():
            text = json.dumps(state)
            checkpoint.save(write=lambda path: Path(path).write_text(text), epoch=step // EPOCH)  # noqa: B023
    save("chain.txt", lambda path: Path(path).write_text(state["digest"]), epoch=steps // EPOCH)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
