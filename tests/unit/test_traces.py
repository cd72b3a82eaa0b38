"""Lines of HTCondor's own logs, recorded from HTCondor 25.14.1."""

from __future__ import annotations

from pathlib import Path

from condorctl.explain import traces
from condorctl.explain.traces import Peak

RECORDED = Path(__file__).parent / "recorded"
EVENTS = """\
000 (020.000.000) 2026-11-24 12:13:19 Job submitted from host: <127.0.0.1:9618>
...
001 (020.000.000) 2026-11-24 12:13:20 Job executing on host: <127.0.0.1:9618>
...
006 (020.000.000) 2026-11-24 12:13:23 Image size of job updated: 425000
\t416  -  MemoryUsage of job (MB)
\t425000  -  ResidentSetSize of job (KB)
...
004 (020.000.000) 2026-11-24 12:13:24 Job was evicted.
\t(0) CPU times
\tReason: Job used too much memory
\tPartitionable Resources :    Usage  Request Allocated
\t   Cpus                 :        0        1         1
\t   Memory (MB)          :               128       128
...
012 (020.000.000) 2026-11-24 12:13:24 Job was held.
\tJob used too much memory
\tCode 26 Subcode 7
...
012 (020.001.000) 2026-11-24 12:13:25 Job was held.
\tanother process
\tCode 1 Subcode 0
...
012 (020.000.000) 2026-11-24 12:14:00 Job was held.
\ttorn
"""


def test_events(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(EVENTS)
    found = traces.event([tmp_path / "none", log], 20, 0, [12])
    assert found
    kind, lines = found
    # The last one has not been written to its end.
    assert (kind, lines[0].number) == (12, 16)
    assert [line.text.strip() for line in lines[1:]] == [
        "Job used too much memory",
        "Code 26 Subcode 7",
    ]
    assert traces.event([log], 20, 2, [12]) is None
    assert traces.memory([log], 20, 0) == Peak(416, 128)
    assert traces.memory([log], 21, 0) == Peak()


def test_scripts_and_a_dag_that_cannot_be_parsed(tmp_path: Path) -> None:
    out = RECORDED / "scripts.dagman.out"
    missing = traces.script_failure(out, "B")
    assert [line.text for line in missing] == [
        'Create_Process: Cannot access specified executable "/no/such/script": errno = 2 '
        "(No such file or directory)",
        "POST Script of node B failed with status 1",
    ]
    # Twice tried: the last time counts.
    [failed] = traces.script_failure(out, "D")
    recorded = out.read_text().splitlines()
    assert recorded[failed.number - 1].endswith("POST Script of node D failed with status 2")
    assert failed.number == max(
        n for n, line in enumerate(recorded, 1) if "POST Script of node D failed" in line
    )
    assert traces.script_failure(out, "C") == []

    errors = traces.dag_errors(RECORDED / "unparsed.dagman.out")
    assert [line.text for line in errors][:3] == [
        "ERROR: Node Q not found!",
        "ERROR: Unknown child node Q specified",
        "Processing error at d.dag:3",
    ]
    dag = tmp_path / "d.dag"
    dag.write_text("# x\nJOB A n.sub\nPARENT A CHILD Q\nscript defer 1 5 POST A /bin/false\n")
    [line] = traces.named_line(tmp_path, errors)
    assert line.text == "PARENT A CHILD Q"
    script = traces.command(dag, "A", "POST")
    assert script
    assert script.number == 4
    assert traces.command(dag, "A", "PRE") is None
    # A DAG that runs says ERROR of a node: that is none of the DAG itself.
    assert traces.dag_errors(out) == []


def test_submit_files(tmp_path: Path) -> None:
    path = tmp_path / "s.sub"
    path.write_text("request_cpus = 1\n# request_cpus = 3\nRequest_Cpus=2\nqueue\n")
    line = traces.submit_line(path, ["request_cpus"])
    assert line
    assert (line.number, line.text) == (3, "Request_Cpus=2")
    assert traces.submit_line(path, ["requirements"]) is None
