"""Where a run comes from, gathered once at its submission and kept in the ledger.

    git       commit, branch, dirty, untracked (names, the first hundred), diff: what was not
              committed, {file in the run's folder, bytes, complete}; null outside a repository
    code      sha256 of the code that travels, files (path: sha256)
    inputs    name: {source, bytes, sha256, copied}
    images    stage: {image, digest}, the digest null where neither name nor file gives one
    packages  name: version, of the Python that condorctl runs in
    versions  condorctl, htcondor, python
    user, host, schedd, folder, command, spec, site, params

What the execute node is, its job records (`record`).
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import condorctl
from condorctl import paths
from condorctl.spec.pipeline import Pipeline
from condorctl.submit import content, universe
from condorctl.submit.snapshot import Snapshot

Json = dict[str, Any]

DIFF_FILE = "uncommitted.diff"
_MOST_DIFF = 10_000_000
_MOST_UNTRACKED = 100
_MOST_FILES = 5000
_GIT_S = 30


def gather(
    pipeline: Pipeline,
    spec: Path,
    taken: Snapshot,
    schedd: str,
    folder: Path,
    images: Mapping[str, universe.Image],
) -> Json:
    """All of it, as the module says; the diff goes into `folder`.

    `images` are those of the stages. Raises OSError when the diff cannot be written.
    """
    packages = _packages()
    return {
        "git": _git(paths.project(), folder / DIFF_FILE),
        "code": {
            "sha256": content.text_sha256(json.dumps(taken.code, sort_keys=True)),
            "files": dict(list(taken.code.items())[:_MOST_FILES]),
        },
        "inputs": {
            text: {
                "source": str(one.source),
                "bytes": one.bytes,
                "sha256": one.sha256,
                "copied": one.place is not None,
            }
            for text, one in taken.inputs.items()
        },
        "images": dict(images),
        "packages": packages,
        "versions": {
            "condorctl": condorctl.__version__,
            "htcondor": packages.get("htcondor"),
            "python": platform.python_version(),
        },
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "schedd": schedd,
        "folder": str(paths.project()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "spec": str(spec),
        "site": pipeline.site.name if pipeline.site else None,
        "params": dict(pipeline.params),
    }


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"] if package.metadata else None
        if name:
            found.setdefault(str(name).lower(), package.version)
    return dict(sorted(found.items()))


def _git(folder: Path, diff: Path) -> Json | None:
    top = _ask(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(top.removesuffix("\n"))
    commit = _ask(root, "rev-parse", "--verify", "--quiet", "HEAD")
    branch = _ask(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    status = _ask(root, "status", "--porcelain=v1", "-z", "--untracked-files=all") or ""
    # Runs are no part of what was submitted, ignored by git or not.
    ours = f"{paths.runs().resolve()}/"
    entries = [e for e in status.split("\0") if e and not f"{root / e[3:]}".startswith(ours)]
    untracked = sorted(entry[3:] for entry in entries if entry.startswith("?? "))
    found: Json = {
        "commit": commit.strip() if commit else None,
        "branch": branch.strip() if branch else None,
        "dirty": bool(entries),
        "untracked": [_text(name) for name in untracked[:_MOST_UNTRACKED]],
        "untracked_count": len(untracked),
        "diff": None,
    }
    text = _ask(
        root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary",
        *(["HEAD"] if commit else ["--cached"]),
    )  # fmt: skip
    if text:
        raw = text.encode("utf-8", "surrogateescape")
        diff.write_bytes(raw[:_MOST_DIFF])
        complete = len(raw) <= _MOST_DIFF
        found["diff"] = {"file": diff.name, "bytes": len(raw), "complete": complete}
    return found


def _ask(folder: Path, *words: str) -> str | None:
    """What git answers in `folder`; None without git, outside a repository, and when it fails."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *words]
    try:
        answer = subprocess.run(
            command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=_GIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = answer.stdout.decode("utf-8", "surrogateescape")
    return text if answer.returncode == 0 else None


def _text(name: str) -> str:
    """A file's name as the ledger can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
