"""Why a program does not start, from a look at its file on the submit machine."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path

# The ELF header's e_machine (elf(5)) of the machines that HTCondor runs on.
_MACHINES = {3: "i386", 62: "x86_64", 183: "aarch64", 21: "ppc64le", 243: "riscv64"}
_ELF = b"\x7fELF"


def fault(path: Path) -> tuple[str, str] | None:
    """What keeps the file at `path` from starting, and what mends it; None when nothing is seen.

    Whether an interpreter is there is asked of this machine: the execute node may differ.
    """
    quoted = shlex.quote(str(path))
    if not path.exists():
        return f"{path} is not there", "put it there"
    if path.is_dir():
        return f"{path} is a folder", "name the program in it as the executable"
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        return f"{path}: {error.strerror}", f"`chmod a+r {quoted}`"
    line = head.partition(b"\n")[0]
    if line.startswith(b"#!") and line.endswith(b"\r"):
        text = line.rstrip(b"\r").decode(errors="replace")
        return (
            f"{path} has Windows line ends (CRLF): its first line asks for {text[2:].strip()!r} "
            "and a carriage return",
            f"`sed -i 's/\\r$//' {quoted}`",
        )
    if not os.access(path, os.X_OK):
        return f"{path} has no execute permission", f"`chmod +x {quoted}`"
    if line.startswith(b"#!"):
        return _interpreted(path, line[2:].decode(errors="replace").split())
    if head.startswith(_ELF):
        return _binary(path, head)
    return (
        f"{path} is no program of this system and has no #! line",
        f"`sed -i '1i #!/bin/sh' {quoted}` if it is a shell script",
    )


def _interpreted(path: Path, words: list[str]) -> tuple[str, str] | None:
    if not words:
        return f"{path}: its #! line names no program", "name the interpreter there"
    program = Path(words[0])
    if not program.is_absolute() or program.exists():
        return None
    return (
        f"{path}: the interpreter of its #! line, {program}, is not there",
        f"name one that the execute node has, as in `#!/usr/bin/env {program.name}`",
    )


def _binary(path: Path, head: bytes) -> tuple[str, str] | None:
    if len(head) < 20:
        return f"{path} is cut short", "copy it again"
    order = "big" if head[5] == 2 else "little"
    number = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
    made_for, here = _MACHINES.get(number), platform.machine()
    if made_for == here:
        return None
    return (
        f"{path} was made for {made_for or f'machine type {number}'}, the submit machine is {here}",
        "build it for the machines of the pool",
    )
