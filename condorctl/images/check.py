"""`condorctl image check`: an image as a job would have it, before a job does.

The container is started as HTCondor starts one (`engine.Engine.as_a_job`). In it the programs are
looked for that a stage's wrapper, `fetch`, `logs` and `ssh` need, and the modules are imported that
the stages' code imports.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condorctl import paths
from condorctl.errors import UserError
from condorctl.explain.finding import OK, PROBLEM, WARNING
from condorctl.images import engine as engines
from condorctl.images import imports
from condorctl.images.engine import Engine, Failed, Tell
from condorctl.spec import image_record, reader

# Beside the shell's own: the wrapper writes its record with some, `fetch` reads files with others.
_PROGRAMS = ("find", "head", "mkdir", "readlink", "sha256sum", "stat", "tail", "uname", "wc")

_LOOK = """\
for program; do command -v "$program" >/dev/null || echo "missing $program"; done
for file in SFTP; do [ -x "$file" ] && echo "sftp $file"; done
set -- $(df -Pm /dev/shm 2>/dev/null | tail -n 1)
echo "shm ${2:-}"
: >written && echo wrote
exit 0
"""
_IMPORT = """\
import importlib, json, platform, sys
print(platform.python_version())
for name in sys.argv[1:]:
    try:
        found = importlib.import_module(name)
        print(json.dumps([name, True, str(getattr(found, "__version__", ""))]))
    except BaseException as error:
        print(json.dumps([name, False, f"{type(error).__name__}: {error}"[:300]]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `warning` or `problem`, and what mends it."""

    name: str
    state: str
    text: str
    mend: str | None = None


def check(
    image: str | None, pipelines: Sequence[str], engine: str | None, tell: Tell
) -> dict[str, Any]:
    """What works in `image`, else in the one pushed or built last, for stages of `pipelines`.

    Without names, for those of all pipelines in ``jobs/``. Returns `image`, its `id`, the `engine`
    and `findings`. Raises UserError where there is no such image, engine or pipeline.
    """
    name = image or image_record.latest() or getattr(image_record.built(None), "tag", None)
    if not name:
        raise UserError("nothing was built here yet: `condorctl image build`, or name an image")
    folder = paths.search("jobs")[0]
    specs = [*map(paths.spec, pipelines)] if pipelines else sorted(folder.glob("*.yaml"))
    modules = imports.of([reader.load(spec) for spec in specs])
    chosen = engines.find(engine)
    identity = chosen.id(name)
    if identity is None:
        tell(f"pulling {name}")
        chosen.watch(["pull", name], tell)
        identity = chosen.id(name) or name
    tell(f"starting {name} as a job would be")
    findings = list(_findings(chosen, identity, modules))
    return {
        "image": name,
        "id": identity,
        "engine": chosen.name,
        "findings": [asdict(one) for one in findings],
    }


def _findings(engine: Engine, image: str, modules: imports.Imports) -> Iterator[Finding]:
    config = engine.config(image)
    if entry := config.get("Entrypoint"):
        yield Finding(
            "entrypoint",
            PROBLEM,
            f"{' '.join(entry)} would get a stage's command as its arguments",
            "ENTRYPOINT [] in the Dockerfile",
        )
    else:
        yield Finding("entrypoint", OK, "none")
    # Where nobody else may look in, and the container's user may write.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        job = engine.as_a_job(folder)
        try:
            said = engine.ask(*job, image, "sh", "-c", _script(), "sh", *_PROGRAMS, "python3")
        except Failed as error:
            yield Finding("sh", PROBLEM, str(error), "a stage's wrapper is for /bin/sh: add one")
            return
        yield Finding("sh", OK, "a stage's wrapper can run")
        yield from _tools(said.splitlines())
        if "missing python3" in said:
            state = PROBLEM if modules else WARNING
            yield Finding("python3", state, "not there", "add python3 to the image")
            return
        yield from _modules(engine.ask(*job, image, "python3", "-c", _IMPORT, *modules), modules)


def _script() -> str:
    return _LOOK.replace("SFTP", " ".join(paths.SFTP_SERVERS))


def _tools(said: Sequence[str]) -> Iterator[Finding]:
    missing = [line.removeprefix("missing ") for line in said if line.startswith("missing ")]
    missing = [name for name in missing if name != "python3"]
    if missing:
        text = f"{', '.join(missing)} not there: no hashes of outputs, no `fetch` while it runs"
        yield Finding("programs", WARNING, text, "add coreutils and findutils to the image")
    else:
        yield Finding("programs", OK, "all that hashes and `fetch` need")
    sftp = [line.removeprefix("sftp ") for line in said if line.startswith("sftp ")]
    if sftp:
        yield Finding("sftp", OK, sftp[0])
    else:
        text = "no sftp-server: sftp and scp to a running job fail; `fetch` and `ssh` do not"
        yield Finding("sftp", WARNING, text, "add openssh-sftp-server to the image")
    if "wrote" not in said:
        text = "an ordinary user cannot write in the job's folder"
        yield Finding("folder", PROBLEM, text, "see that the image needs no user of its own")
    size = next((line.removeprefix("shm ") for line in said if line.startswith("shm ")), "")
    if size.isdigit() and int(size) < 1024:
        text = f"{size} MB, where a DataLoader's workers hand over batches"
        mend = "num_workers=0, or the pool's administrator sets DOCKER_SHM_SIZE"
        yield Finding("/dev/shm", WARNING, text, mend)


def _modules(said: str, modules: imports.Imports) -> Iterator[Finding]:
    version, *lines = said.splitlines()
    yield Finding("python3", OK, version)
    for line in lines:
        try:
            name, good, text = json.loads(line)
        except ValueError:
            continue  # what a module says while it is imported
        if good:
            yield Finding(name, OK, text or "can be imported")
        elif modules[name]:
            yield Finding(name, PROBLEM, text, f"install {name} in the image")
        else:
            text = f"{text} (imported only where it is used)"
            yield Finding(name, WARNING, text, f"install {name} in the image if a stage uses it")
