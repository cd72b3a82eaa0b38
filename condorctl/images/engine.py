"""Docker or Podman, whichever answers on this machine: what both understand in the same words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from condorctl.errors import UserError

Tell = Callable[[str], None]
Name = Literal["docker", "podman"]

_NAMES: tuple[Name, ...] = ("docker", "podman")
_ANSWER_S = 30


class Failed(UserError):
    """The engine says no; its last words are the message."""


class Engine(NamedTuple):
    """A container engine's command line."""

    name: Name

    def ask(self, *words: str, seconds: float | None = None) -> str:
        """What the engine prints for `words`. Raises Failed."""
        try:
            answer = subprocess.run(
                [self.name, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds
            )
        except FileNotFoundError:
            raise Failed(f"{self.name}: no such program on PATH") from None
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name}: no answer within {seconds:.0f} s", 1) from None
        if answer.returncode:
            raise Failed(self._complaint(words, answer.stderr.decode(errors="replace")), 1)
        return answer.stdout.decode(errors="replace").strip()

    def watch(self, words: Sequence[str], tell: Tell) -> None:
        """Run `words`, which may take long, and `tell` each line that they say. Raises Failed."""
        said: list[str] = []
        with subprocess.Popen(
            [self.name, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip("\n"))
                tell(said[-1])
        if process.returncode:
            raise Failed(self._complaint(words, "\n".join(said)), 1)

    def config(self, image: str) -> dict[str, Any]:
        """The configuration of an image that is here: Entrypoint, Env, User. Raises Failed."""
        text = self.ask("image", "inspect", "--format", "{{json .Config}}", image)
        found: dict[str, Any] = json.loads(text)
        return found

    def id(self, image: str) -> str | None:
        """``sha256:…`` of an image that is here, else None."""
        # Podman calls what it builds by a name without a host so, and finds it by that name alone.
        for name in (image, f"localhost/{image}"):
            with contextlib.suppress(Failed):
                text = self.ask("image", "inspect", "--format", "{{.Id}}", name)
                return f"sha256:{text.removeprefix('sha256:')}"
        return None

    def push(self, tag: str, tell: Tell) -> str:
        """Push `tag` to its registry; return the digest that the image has there. Raises Failed."""
        if self.name == "podman":
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "digest"
                self.watch(["push", "--digestfile", str(file), tag], tell)
                return file.read_text(encoding="ascii").strip()
        self.watch(["push", tag], tell)
        name = tag.rpartition(":")[0] if ":" in tag.rpartition("/")[2] else tag
        known = json.loads(self.ask("image", "inspect", "--format", "{{json .RepoDigests}}", tag))
        for one in known:
            if one.startswith(f"{name}@"):
                return str(one.partition("@")[2])
        raise Failed(f"docker: pushed {tag} and tells no digest of it", 1)

    def as_a_job(self, folder: Path) -> list[str]:
        """The words for `run` that start a container as HTCondor does, in `folder`.

        As in HTCondor's own ``docker create``: an ordinary user, no capability, nothing of this
        machine but the job's folder. Root's images run as nobody, since no job is root's.
        """
        uid, gid = (os.getuid(), os.getgid()) if os.getuid() else (65534, 65534)
        mine = ["--userns", "keep-id"] if self.name == "podman" and os.getuid() else []
        return [
            "run", "--rm", *mine, "--user", f"{uid}:{gid}", "--cap-drop=all",
            "--security-opt", "no-new-privileges",
            "--volume", f"{folder}:{folder}", "--workdir", str(folder),
        ]  # fmt: skip

    def _complaint(self, words: Sequence[str], said: str) -> str:
        lines = [line for line in said.splitlines() if line.strip()]
        return f"{self.name} {words[0]}: {lines[-1] if lines else 'failed without a word'}"


def find(wanted: str | None = None) -> Engine:
    """The engine `wanted`, else the first that answers. Raises UserError when none does."""
    if wanted is not None and wanted not in _NAMES:
        raise UserError(f"--engine {wanted}: is neither docker nor podman")
    reasons = []
    for name in _NAMES:
        if name != (wanted or name):
            continue
        engine = Engine(name)
        if not shutil.which(name):
            reasons.append(f"there is no {name}")
            continue
        try:
            engine.ask("info", seconds=_ANSWER_S)
        except Failed as error:
            reasons.append(str(error))
        else:
            return engine
    raise UserError(
        f"no container engine answers ({'; '.join(reasons)}): install podman, which needs no "
        "daemon and no root, or start Docker",
        1,
    )
