"""What DAGMan itself knows of a DAG that somebody else wrote: its nodes, and what came of them.

There is no parser of DAG files here. DAGMan reads a copy of the DAG, writes the graph that it has
understood, splices and all, and exits without running anything (``-Dot``). Its verdict on nodes
stands in the rescue file and the metrics file that it leaves when it ends (HTCondor manual,
"Resubmitting a Failed DAG", "DAGMan Metrics").
"""

from __future__ import annotations

import heapq
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from condorctl.condor import cluster
from condorctl.errors import UserError

_TIMEOUT_S = 120
# DAGMan puts these between many parents and many children; they run nothing.
_JOIN = "_condor_join_node"

_NODE = re.compile(r'^    "(?P<name>.+)" \[shape=\w+ label=".* \((?P<state>\w+)\)".*\];$')
_ARC = re.compile(r'^    "(?P<parent>.+)" -> "(?P<child>.+)";$')
_RETRY = re.compile(
    rb"(?im)^[ \t]*RETRY[ \t]+(?P<node>\S+)[ \t]+(?P<count>\d{1,6})"
    rb"(?:[ \t]+UNLESS-EXIT[ \t]+(?P<final>\d{1,3}))?"
)
_ALL_NODES = "ALL_NODES"
_STARTING = "(CONDOR_DAGMAN) STARTING UP"
_FROM_RESCUE = re.compile(r"USING RESCUE DAG (?P<file>\S.*)")
# What DAGMan says where it stops; each line starts with date and time.
_SAID = re.compile(r"^\d\d/\d\d/\d\d \d\d:\d\d:\d\d (?P<text>.*)$", re.MULTILINE)
_ERROR = re.compile(r"^ERROR|^Processing error|^Warning|Invalid|REJECT")
# What comes before it is about the machine; here it has no schedd to talk to.
_PARSING = re.compile(r"Parsing \d+ dagfiles")


@dataclass(frozen=True)
class Graph:
    """A DAG's nodes in its own order, and the nodes that each waits for."""

    needs: dict[str, list[str]]
    # Nodes that are done before anything runs: marked so in the DAG, or by a rescue file.
    done: frozenset[str]
    # Retries of a node, and the exit code that no retry mends, where the DAG's own file sets them.
    retries: dict[str, tuple[int, int | None]] = field(default_factory=dict)


def graph(
    dags: Sequence[str], folder: Path, rescue: Path | None = None, in_place: bool = False
) -> Graph:
    """The graph that DAGMan makes of the files `dags`, read from `folder` as it would.

    `rescue` tells what is done already; `in_place` is DAGMan's ``-UseDagDir``. Changes no file.
    Raises UserError with DAGMan's own words when it cannot read them.
    """
    files = [folder / dag for dag in dags]
    version = cluster.version()
    with tempfile.TemporaryDirectory(prefix="dag-") as temporary:
        place = Path(temporary)
        copies = _copies(files, place)
        where = files[0].parent if in_place and len(files) == 1 else folder
        _run(copies, where, place, version)
        try:
            text = (place / "graph.dot").read_text(encoding="utf-8", errors="replace")
        except OSError:
            raise UserError(f"{files[0].name}: {_why(place / 'log')}") from None
    needs, done = _parse(text)
    if rescue:
        # It names nodes of splices, which a DAG itself may not.
        done |= _rescued(rescue)[0]
    retries: dict[str, tuple[int, int | None]] = {}
    for match in _RETRY.finditer(files[0].read_bytes()) if len(files) == 1 else ():
        final = int(match["final"]) if match["final"] else None
        name = match["node"].decode("utf-8", "replace")
        for node in needs if name.upper() == _ALL_NODES else [name]:
            retries[node] = (int(match["count"]), final)
    return Graph(needs, frozenset(done), retries)


def _copies(files: Sequence[Path], place: Path) -> list[Path]:
    copies = []
    for number, file in enumerate(files):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        if number == 0:
            # Of several the first one counts: the user's own is not to be written to.
            text = f"JOBSTATE_LOG {place}/jobstate\n".encode() + text
        if number == len(files) - 1:
            # And of these the last one.
            text += f"\nDOT {place}/graph.dot OVERWRITE\n".encode()
        copies.append(place / f"{number}.dag")
        copies[-1].write_bytes(text)
    return copies


def _run(copies: Sequence[Path], folder: Path, place: Path, version: str) -> None:
    command = ["condor_dagman", "-f", "-t", "-l", str(place), "-Lockfile", str(place / "lock")]
    for copy in copies:
        command += ["-Dag", str(copy)]
    command += ["-Dot", "-AutoRescue", "0", "-Suppress_notification"]
    command += ["-CsdVersion", version]
    environment = {
        **os.environ,
        "_CONDOR_DAGMAN_LOG": str(place / "log"),
        "_CONDOR_MAX_DAGMAN_LOG": "0",
        "_CONDOR_DAGMAN_USE_STRICT": "0",
        "_CONDOR_DAGMAN_STARTUP_CYCLE_DETECT": "true",
        # What it cannot read it would try to remove from the queue.
        "_CONDOR_DAGMAN_CONDOR_RM_EXE": "/bin/true",
    }
    try:
        subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        raise UserError("condor_dagman is not on this machine: no DAG can be read here") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"DAGMan has not read the DAG in {_TIMEOUT_S} s") from None


def _parse(text: str) -> tuple[dict[str, list[str]], set[str]]:
    needs: dict[str, list[str]] = {}
    done = set()
    for line in text.splitlines():
        if match := _NODE.match(line):
            needs[match["name"]] = []
            if match["state"] == "Done":
                done.add(match["name"])
        elif (match := _ARC.match(line)) and match["child"] in needs:
            needs[match["child"]].append(match["parent"])
    joins = {name for name in needs if name.rpartition("+")[2].startswith(_JOIN)}
    real = {
        name: [one for need in needs[name] for one in (needs[need] if need in joins else [need])]
        for name in needs
        if name not in joins
    }
    return {name: list(dict.fromkeys(found)) for name, found in real.items()}, done - joins


def ordered(needs: dict[str, list[str]]) -> list[str]:
    """The nodes, each after those it waits for, otherwise in their own order."""
    left = {name: {need for need in found if need in needs} for name, found in needs.items()}
    place = {name: position for position, name in enumerate(needs)}
    children: dict[str, list[str]] = {name: [] for name in needs}
    for name, found in left.items():
        for need in found:
            children[need].append(name)
    ready = [position for name, position in place.items() if not left[name]]
    names, order = list(needs), []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for child in children[name]:
            left[child].discard(name)
            if not left[child]:
                heapq.heappush(ready, place[child])
    return order


def _why(log: Path) -> str:
    """What DAGMan said when it gave up."""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        text = text[max((match.end() for match in _PARSING.finditer(text)), default=0) :]
        said = [match["text"] for match in _SAID.finditer(text)]
        # That our files are not the DAG's own is nothing to mend.
        told = [words for words in said if _ERROR.search(words) and f"{log.parent}/j" not in words]
        if told:
            # It calls the DAG by the name of our copy, whose first line is ours.
            words = re.sub(
                r"(?:/\S*)?/\d+\.dag(?::(\d+))?",
                lambda place: f"line {int(place[1]) - 1}" if place[1] else "the DAG",
                "; ".join(told),
            )
            return f"DAGMan cannot read it: {words}"
    return "DAGMan cannot read it, and does not say why"


@dataclass(frozen=True)
class Verdict:
    """What DAGMan says of its nodes now that it has ended."""

    # Every node that counts has succeeded; of those it does not say more.
    all_done: bool
    done: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


def verdict(dag: Path, begun: float) -> Verdict:
    """What DAGMan has left to say in the files of `dag`, of its run that began at `begun`.

    An exit code of 0 alone says little: with ABORT-DAG-ON … RETURN 0, or after a FINAL node that
    has succeeded, nodes have failed or have never run.
    """
    metrics = _metrics(Path(f"{dag}.metrics"), begun)
    kinds = ("nodes", "dag_nodes")
    if (
        metrics
        and metrics.get("exitcode") == 0
        and metrics.get("DagStatus", 0) == 0
        and all(metrics.get(kind) == metrics.get(f"{kind}_succeeded") for kind in kinds)
    ):
        return Verdict(True)
    rescues = [file for file in rescue_files(dag) if file.stat().st_mtime >= begun - 1]
    if not rescues:
        return Verdict(False)
    done, failed = _rescued(rescues[-1])
    return Verdict(False, frozenset(done), frozenset(failed))


def _rescued(file: Path) -> tuple[set[str], set[str]]:
    """The nodes that a rescue file calls done, and those that it calls failed."""
    done: set[str] = set()
    failed: set[str] = set()
    listing = False
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if listing:
            names = line.lstrip("# ").rstrip().split(",")
            failed.update(name for name in names if name and name != "<ENDLIST>")
            listing = "<ENDLIST>" not in names
        elif line.startswith("# Nodes that failed:"):
            listing = line.rpartition(":")[2].strip() != "0"
        elif line.startswith("DONE "):
            done.add(line.split()[1])
    return done, failed


def rescue_files(dag: Path) -> list[Path]:
    """The DAG's rescue files, the one that DAGMan takes last."""
    name = re.compile(re.escape(dag.name) + r"\.rescue\d{3}")
    try:
        return sorted(path for path in dag.parent.iterdir() if name.fullmatch(path.name))
    except OSError:
        return []


def rescue_of(dag: Path) -> Path | None:
    """The rescue file that the latest DAGMan of the DAG started from; None when it started anew."""
    with suppress(OSError):
        text = Path(f"{dag}.dagman.out").read_text(encoding="utf-8", errors="replace")
        latest = text[text.rfind(_STARTING) + 1 :]
        if match := _FROM_RESCUE.search(latest):
            file = dag.parent / Path(match["file"]).name
            return file if file.is_file() else None
    return None


def _metrics(file: Path, begun: float) -> dict[str, object]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and float(found.get("end_time", 0)) >= begun - 1:
            return found
    return {}


def dag_files(arguments: str) -> list[str]:
    """The DAG files in the arguments of a DAGMan job, as its ad has them."""
    words = [
        re.sub(r"'((?:[^']|'')*)'", lambda quoted: quoted[1].replace("''", "'"), word)
        for word in re.findall(r"(?:'(?:[^']|'')*'|[^\s'])+", arguments)
    ]
    flags = [word.lower() for word in words]
    return [words[at + 1] for at, flag in enumerate(flags[:-1]) if flag == "-dag"]


def uses_dag_dir(arguments: str) -> bool:
    """Whether it works in the folders of its DAG files."""
    return bool(re.search(r"(?i)(?:^|\s)-usedagdir(?:\s|$)", arguments))
