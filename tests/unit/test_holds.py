"""HTCondor's own words of a hold, recorded from HTCondor 25.14.1, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from condorctl.condor import holds, starts
from condorctl.explain import programs

INPUT = (
    "Transfer input files failure at access point vm while sending files to execution point "
    "slot1_7@vm. Details: 1 total failures: first failure: reading from file {}: (errno {}) {}"
)
OUTPUT = (
    "Transfer output files failure at execution point slot1_8@vm while sending files to access "
    "point vm. Details: 1 total failures: first failure: reading from file "
    "/var/lib/condor/execute/dir_22119/scratch/out/model.pt: (errno 2) No such file or directory"
)
URL = (
    "Transfer input files failure at execution point slot1_2@vm using protocol http. Details: "
    "Failed to connect to 127.0.0.1:9 after 0 ms: Could not connect to server "
    "( URL file = http://127.0.0.1:9/x.bin )"
)


@pytest.mark.parametrize(
    ("code", "subcode", "reason", "cause", "mend"),
    [
        (1, 0, "via condor_hold (by user u)", "held by its owner", "`condorctl release 7.0`"),
        (3, 42, "my own policy", "a hold policy of the job itself says: my own policy", "change"),
        (7, 2, "Error from slot1_8@vm: Failed to open '/no/x.out' as standard output: No such file "
         "or directory (errno 2)", "its standard output could not be opened: /no/x.out: there is",
         "check that folder"),
        (8, 2, "Error from slot1_6@vm: Failed to open '/dev/gone' as standard input: No such file "
         "or directory (errno 2)", "its standard input could not be opened: /dev/gone: there is",
         "put the file in place"),
        (12, 2, OUTPUT, "the job ended without writing out/model.pt", "see why in `condorctl logs 7.0"),
        (13, 2, INPUT.format("/home/u/a b {job}.txt", 2, "No such file or directory"),
         "an input file could not be sent: /home/u/a b {job}.txt: there is no such file",
         "put it there, then `condorctl release 7.0`"),
        (13, 13, INPUT.format("/home/u/x", 13, "Permission denied"),
         "an input file could not be sent: /home/u/x: it may not be read", "`chmod a+r /home/u/x`"),
        (13, 256, URL, "an input file could not be sent: http://127.0.0.1:9/x.bin: Failed to connect",
         "check the address"),
        (13, 2, "Error from slot1@x: SHADOW at 1.2.3.4 failed to send file(s) to <1.2.3.4:3>: error "
         "reading from /a/b.txt: (errno 2) No such file or directory; STARTER failed to receive",
         "an input file could not be sent: /a/b.txt: there is no such file", "put it there"),
        (15, 0, "submitted on hold at user's request", "submitted on hold, on purpose", "`condorctl"),
        (16, 0, "Spooling input data files", "its input files are still being spooled", "wait"),
        (26, 7, "Job used too much", "a hold policy of the pool says: Job used too much", "change"),
        (34, 102, "Job has gone over cgroup memory limit of 128 megabytes.",
         "it used more memory than it asked for", "raise request_memory"),
        (34, 104, "", "it used more disk than it asked for", "raise request_disk"),
        (21, 102, "memory usage exceeded request_memory", "it used more memory", "raise request_mem"),
        (3, 102, "an hour is over", "a hold policy of the job itself says: an hour", "change"),
        (12, 2, OUTPUT.replace("out/model.pt", "_condorctl_job"), "the stage was never started",
         "see `condorctl logs 7.0 --err`"),
        (35, 0, "Error from slot1@vm: Cannot pull image 127.0.0.1:5055/none:1 Error: initializing "
         "source docker://127.0.0.1:5055/none:1: reading manifest 1 in 127.0.0.1:5055/none: manifest "
         "unknown: manifest unknown", "the registry has no 127.0.0.1:5055/none:1", "correct `image`"),
        (35, 0, "Error from slot1@vm: Cannot pull image r.invalid/x:1 Error: initializing source "
         "docker://r.invalid/x:1: pinging container registry r.invalid: Get "
         '"https://r.invalid/v2/": dial tcp: lookup r.invalid on 10.0.0.1:53: no such host',
         "the node cannot reach the registry of r.invalid/x:1", "see that it runs"),
        (35, 0, "Error from slot1@vm: Cannot pull image x/y:1 Error response from daemon: pull access "
         "denied for x/y, repository does not exist or may require 'docker login'",
         "the registry has no x/y:1, or wants a login for it", "correct `image`"),
        (35, 0, "Error from slot1@vm: Resource limits are not supported Error: container-init binary "
         "not found on the host", "its container could not be started", "see what the node says"),
        (3, 45, "its container could not be started 10 times; Error from slot1_2@n7.example: "
         "Singularity test failed:FATAL:   while extracting /x.sif: no space left on device",
         "its container could not be started, so often that it is not tried any more: "
         "slot1_2@n7.example has no room", 'if other nodes can: `requirements: Machine != "n7.exam'),
        (3, 45, "", "its container could not be started, so often", "`condorctl explain 7.0` has"),
        (46, 0, "The job exceeded allowed job duration of 00:05", "it took longer", "raise that"),
        (4711, 1, "?", "hold code 4711.1", "see the reason below"),
        (None, None, "", "hold code None.None", "see the reason below"),
    ],
)  # fmt: skip
def test_cause_and_mend(
    code: int | None, subcode: int | None, reason: str, cause: str, mend: str
) -> None:
    hold = holds.explain(code, subcode, "7.0", reason)
    assert hold.cause.startswith(cause)
    assert hold.mend.startswith(mend)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("Error from slot1@vm: Singularity test failed:FATAL:   could not open image /x/{y}.sif: "
         "failed to retrieve path for /x/{y}.sif: lstat /x: no such file or directory",
         "slot1@vm has no image /x/{y}.sif"),
        ("Error from slot1@vm: Singularity test failed:FATAL: no {idea}\nat all",
         "Apptainer on slot1@vm cannot start its image: FATAL: no {idea} at all"),
        ("Error from slot1_2@vm: Cannot inspect exited container", "Docker on slot1_2@vm has lost"),
        ("Error from slot1_2@vm: {what} is wrong", "slot1_2@vm gave it back: {what} is wrong"),
        ("no words of a node", "its node gave it back: no words of a node"),
    ],
)  # fmt: skip
def test_why_a_node_gave_a_job_back(reason: str, cause: str) -> None:
    found, mend = starts.explain(reason)
    assert found.startswith(cause)
    assert "{node}" not in mend and ("NODE" in mend) == ("slot" not in reason)


def test_the_interpreter_that_is_not_there() -> None:
    reason = (
        "Error from slot1_1@vm: Failed to execute '/x/a.sh': invalid interpreter (/no/such) "
        "specified on first line of script (errno=2: 'No such file or directory')"
    )
    assert holds.interpreter(reason) == "/no/such"
    assert holds.named_file(reason, 2) == holds.NamedFile("/x/a.sh", 2, "", False, False)
    assert holds.interpreter("Failed to execute '/x/a.sh': (errno=13: 'Permission denied')") is None


@pytest.mark.parametrize(
    ("content", "mode", "fault"),
    [
        (
            b"#!/bin/sh\r\necho hi\r\n",
            0o755,
            "has Windows line ends (CRLF): its first line asks for",
        ),
        (b"#!/bin/sh\necho hi\n", 0o644, "has no execute permission"),
        (
            b"#! /no/such/perl -w\n",
            0o755,
            ": the interpreter of its #! line, /no/such/perl, is not",
        ),
        (b"#!\n", 0o755, ": its #! line names no program"),
        (b"echo hi\n", 0o755, "is no program of this system and has no #! line"),
        (b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x15\0", 0o755, "was made for ppc64le"),
        (b"\x7fELF", 0o755, "is cut short"),
        (b"", 0o755, "is no program of this system"),
        (b"#!/bin/sh\necho hi\n", 0o755, None),
    ],
)
def test_programs(tmp_path: Path, content: bytes, mode: int, fault: str | None) -> None:
    path = tmp_path / "a program.sh"
    path.write_bytes(content)
    path.chmod(mode)
    found = programs.fault(path)
    assert (found is None) == (fault is None)
    if found and fault:
        assert found[0].startswith(f"{path} {fault}".replace(" :", ":"))
        assert "`" not in found[1] or f"'{path}'" in found[1] or "#!/usr/bin/env" in found[1]


def test_no_program_at_all(tmp_path: Path) -> None:
    assert programs.fault(tmp_path) == (
        f"{tmp_path} is a folder",
        "name the program in it as the executable",
    )
    assert programs.fault(tmp_path / "x") == (f"{tmp_path / 'x'} is not there", "put it there")
