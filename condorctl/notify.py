"""A message when a run ends or one of its jobs is held, through Apprise.

DAGMan itself starts the sender: the POST script of a FINAL node, which runs whatever became of the
other nodes, and a HOLD script for all of them (HTCondor manual, "DAGMan Scripts", "The FINAL
Node"). So a message comes although nobody watches, and no process waits for it.

Where messages go stands in a file of the user's alone, in Apprise's own text or YAML format, since
its addresses hold passwords: ``$CONDORCTL_NOTIFY``, else ``~/.config/condorctl/notify.conf``. An
address tagged ``done``, ``failed`` or ``held`` gets those messages only.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from condorctl import paths, units
from condorctl.errors import UserError
from condorctl.pool import elsewhere

Json = dict[str, Any]

# A node name that no stage can have: stages begin with a letter.
_NODE = "_end"
_SCRIPT = "notify.sh"
_MOST_CHARACTERS = 3000
_TIMEOUT_S = 60

# What the sender must know of where its user works. DAGMan's environment is its own.
_ENVIRONMENT = (
    "HOME", "PATH", "CONDOR_CONFIG", "CONDORCTL_LEDGER", "CONDORCTL_DB", "CONDORCTL_NOTIFY",
    "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
)  # fmt: skip


def config() -> Path | None:
    """The file that says where messages go, None when there is none.

    Raises UserError when others may read it, or when Apprise is not installed.
    """
    chosen = os.environ.get("CONDORCTL_NOTIFY")
    file = Path(chosen).expanduser() if chosen else paths.config() / "notify.conf"
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if chosen or not isinstance(error, FileNotFoundError):
            raise UserError(f"CONDORCTL_NOTIFY={file}: {error.strerror}") from None
        return None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file}: others may read it, and it holds passwords: chmod 600 {file}")
    _apprise()
    return file.absolute()


def attach(dag: Path, run: str) -> None:
    """Have DAGMan send messages about the run called `run`, if there is somewhere to send them.

    Adds to the DAG file at `dag` and writes the sender beside it. The DAG's outcome stays what it
    is without: the FINAL node ends with the status that DAGMan had before it.
    """
    # A schedd elsewhere has neither this program nor the addresses.
    if elsewhere.schedd() or config() is None:
        return
    folder = dag.parent
    known = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if urlsplit(known.get("CONDORCTL_DB", "")).password:
        raise UserError("CONDORCTL_DB: holds a password, which `notify` would have to write down: "
                        "put it into ~/.pgpass")  # fmt: skip
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in known.items())
    sender = shlex.join([sys.executable, "-m", "condorctl", "notify", run])
    script = folder / _SCRIPT
    script.write_text(
        "#!/bin/sh\n"
        "# DAGMan calls it:  notify.sh end DAG_STATUS | notify.sh held NODE\n"
        f"{settings}"
        "case $1 in\n"
        f'held) {sender} --stage "$2" >>notify.log 2>&1 ;;\n'
        f'*) {sender} --dag-status "$2" >>notify.log 2>&1; exit "$2" ;;\n'
        "esac\n",
        encoding="utf-8",
    )
    script.chmod(0o700)
    (folder / f"{_NODE}.sub").write_text("executable = /bin/true\nqueue\n", encoding="utf-8")
    with dag.open("a", encoding="utf-8") as file:
        file.write(
            f"\n# Messages (condorctl notify)\n"
            f"FINAL {_NODE} {_NODE}.sub NOOP\n"
            f"SCRIPT POST {_NODE} {_SCRIPT} end $DAG_STATUS\n"
            f"SCRIPT HOLD ALL_NODES {_SCRIPT} held $NODE\n"
        )


def send(view: Json, event: str, troubles: Iterable[str], results: str = "") -> Json:
    """Send what `view`, a run as `status.describe` gives it, has become.

    `event` is "done", "failed" or "held"; `troubles` are lines of text, `results` goes below.
    Returns the event, the title, and how many addresses it went to. Raises UserError when a message
    cannot be sent.
    """
    done = sum(stage["state"] == "done" for stage in view["stages"])
    lines = [
        f"{done} of {len(view['stages'])} stages done, {units.duration(view['elapsed_s'])}",
        *troubles,
        f"condorctl status {view['run']}",
    ]
    body = "\n".join([*lines, *(["", results] if results else [])])
    return {"event": event, **_send(event, f"{view['run']}: {event}", body)}


def test() -> Json:
    """Send a message that only says that it arrived."""
    return {"event": "test", **_send(None, "condorctl", "Messages about runs will come here.")}


def _send(event: str | None, title: str, body: str) -> Json:
    file = config()
    if file is None:
        raise UserError(
            f"nowhere to send: put an Apprise address into {paths.config() / 'notify.conf'}, "
            "mode 600"
        )
    apprise = _apprise()
    found = apprise.AppriseConfig()
    if not found.add(str(file)) or not found.services():
        raise UserError(f"{file}: holds no address that Apprise knows")
    wanted = [s for s in found.services() if event is None or not s.tags or event in s.tags]
    to = apprise.Apprise()
    to.add(wanted)
    kind = apprise.NotifyType.INFO if event in (None, "done") else apprise.NotifyType.FAILURE
    text = apprise.NotifyFormat.TEXT
    if wanted and not to.notify(
        body[:_MOST_CHARACTERS], title, kind, body_format=text, timeout=_TIMEOUT_S
    ):
        # Apprise logs why, with addresses blanked; an address of ours would show its password.
        raise UserError(f"{file}: a message could not be sent to all {len(wanted)} addresses", 1)
    return {"title": title, "sent": len(wanted)}


def _apprise() -> Any:
    try:
        import apprise
    except ImportError:
        raise UserError("messages need Apprise: pip install 'condorctl[notify]'") from None
    return apprise
