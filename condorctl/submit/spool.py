"""Runs on a schedd elsewhere: what they need is spooled there, and DAGMan works there.

It works in its job's own folder below the SPOOL of that schedd; `ledger.spooled` brings back what
it and its jobs write. No file system is shared. (HTCondor manual, "Submitting Jobs Using a Remote
Schedd".)
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from condorctl.condor import cluster, submit_language
from condorctl.condor.codes import JobStatus
from condorctl.ledger import runfile, spooled
from condorctl.submit import content
from condorctl.submit.snapshot import Snapshot

# Finished DAGs wait that long for somebody to bring back what they left.
_KEEP_S = 30 * 86400
_LEAVE_IN_QUEUE = (
    f"(JobStatus == {JobStatus.COMPLETED} || JobStatus == {JobStatus.REMOVED})"
    f" && time() - EnteredCurrentStatus < {_KEEP_S}"
)
# In a rendered submit file: the line, and a path on it that `places` gave.
_INPUTS = re.compile(r"^[ \t]*transfer_input_files[ \t]*=.*$", re.IGNORECASE | re.MULTILINE)
_INPUT = re.compile(r"([=,]\s*)(inputs/x?\d+)(?=/)")


def places(taken: Snapshot, folder: Path) -> dict[str, str]:
    """Where each local input is in `folder`, the run's; those left in place are copied now."""
    found = {}
    for number, (text, one) in enumerate(taken.inputs.items()):
        place = one.place
        if place is None:
            place = f"inputs/x{number}/{one.source.name}"
            (folder / place).parent.mkdir(parents=True)
            content.copy(one.source, folder / place)
        found[text] = f"{place}{'/' * text.endswith('/')}"
    return found


def make_absolute(folder: Path) -> None:
    """Have DAGMan make the paths of local inputs absolute, in its own folder there.

    A job gets a relative path with all its folders, an absolute one under its base name alone, as
    a spec means it; but where the run's folder will be, only DAGMan knows when it submits.
    """
    for file in folder.glob("*/stage.sub"):
        text = _INPUTS.sub(
            lambda line: _INPUT.sub(r"\1$Ff(\2)", line[0]), file.read_text(encoding="utf-8")
        )
        file.write_text(text, encoding="utf-8")


def submit(dag: Path, batch_name: str) -> int:
    """Submit the DAG with all that lies beside it; return the cluster id of its DAGMan job.

    Raises Unreachable when the schedd does not answer, UserError when it refuses.
    """
    import classad2

    htcondor, schedd, location = cluster.connection()
    staging = dag.parent / spooled.STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    # Of a run that is resumed: there it begins anew, and readers know it by its inode.
    if (log := Path(f"{dag}.dagman.log")).exists():
        log.rename(log.with_name(f"{log.name}.{int(time.time())}"))
    # They can be asked for from the first moment on.
    for name in ("nodes.log", "dagman.out"):
        (dag.parent / f"{dag.name}.{name}").touch()
    with contextlib.chdir(dag.parent):
        try:
            # Of all requests this one says why it is refused.
            schedd.query(constraint="false")
            description = cluster.describe_dag(dag.name, batch_name)
            Path(f"{dag.name}.condor.sub").unlink()
            own = description["executable"]
            there = f"{htcondor.RemoteParam(location)['BIN']}/condor_dagman"
            description["executable"] = there
            description["transfer_executable"] = "False"
            description["arguments"] = description["arguments"].replace(own, there)
            # Nothing of this machine's environment means anything there.
            description["getenv"] = "False"
            description["environment"] = str(submit_language.environment(_environment(dag)))
            description["should_transfer_files"] = "YES"
            names = (path.name for path in Path().iterdir())
            ours = (spooled.STAGING, runfile.FILE)
            files = sorted(name for name in names if not name.startswith(ours))
            description["transfer_input_files"] = str(submit_language.file_list(files))
            description["leave_in_queue"] = _LEAVE_IN_QUEUE
            # Whoever is killed before the answer comes finds it again by this.
            description[f"My.{cluster.FOLDER}"] = classad2.quote(str(dag.parent))
            result = schedd.submit(description, spool=True)
        except (htcondor.HTCondorException, KeyError) as error:
            raise cluster.refused(f"{dag.name}: HTCondor refuses the DAG", error) from None
        number = int(result.cluster())
        try:
            schedd.spool(result)
            schedd.edit([f"{number}.0"], "SUBMIT_Iwd", f'"{staging}"')
        except BaseException as error:
            with contextlib.suppress(htcondor.HTCondorException):
                spooled.take_back(number)
            if isinstance(error, htcondor.HTCondorException):
                raise cluster.refused(f"{dag.name}: its files did not arrive", error) from None
            raise
    return number


def _environment(dag: Path) -> dict[str, str]:
    """DAGMan's, there: what `dagman.config` sets, since a file's path would have to be absolute."""
    told = {"_CONDOR_DAGMAN_LOG": f"{dag.name}.dagman.out", "_CONDOR_MAX_DAGMAN_LOG": "0"}
    for line in Path("dagman.config").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith("#"):
            told[f"_CONDOR_{name.strip()}"] = value.strip()
    return told
