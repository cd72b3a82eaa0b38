"""Files of jobs in every state, on a real pool: by the command line, and byte for byte."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

Submit = Callable[..., str]
Wait = Callable[..., Status]
Condor = Callable[..., str]

SMALL = "request_memory: 64 MB, request_disk: 50 MB"
MEGABYTES = 100

# Fetches in a process of its own and tells how many bytes came through its pipes.
COUNTING = """
import json, os, sys
from condorctl import api
from condorctl.files import sandbox
count, read = 0, os.read
def counted(fd, size):
    global count
    chunk = read(fd, size)
    count += len(chunk)
    return chunk
sandbox.os.read = counted
files = api.fetch(sys.argv[1], sys.argv[2:])["files"]
print(json.dumps([count, files]))
"""

# What a job can leave in its sandbox to harm whoever fetches it.
HOSTILE = r"""
head -c $1 /dev/urandom > big.bin
sha256sum < big.bin | cut -d' ' -f1 > big.sum
mkdir -p d/e 'a b'
ln -s /etc/passwd d/evil; ln -s /etc etc; ln -s ../.. up; ln -s loop loop; ln -s nothing dangling
mkfifo d/fifo
echo pt > d/e/f.pt; ln -s d/e/f.pt good.pt; echo hidden > d/.h.pt
echo nl > "$(printf 'a b/new\nline \033[31mred')"
echo per > 'a b/per%cent \0101 $(id) "quoted"'
echo latin > "$(printf 'a b/\351t\351')"
touch empty
echo ready > ready
i=0; while :; do i=$((i+1)); echo "line $i" >> grow.log; sleep 0.2; done
"""


def ended(view: Status) -> bool:
    return bool(view["finished"])


def files_of(answer: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert answer.returncode == 0, answer
    found: list[dict[str, Any]] = json.loads(answer.stdout)["files"]
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start_fetch(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "condorctl", "fetch", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def counted(*words: str) -> tuple[int, list[dict[str, Any]]]:
    answer = subprocess.run(
        [sys.executable, "-c", COUNTING, *words], capture_output=True, text=True, check=True
    )
    count, files = json.loads(answer.stdout)
    return count, files


def test_a_hostile_sandbox_an_interrupted_fetch_and_two_at_once(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    (project / "hostile.sh").write_text(HOSTILE)
    size = MEGABYTES * 1_000_000
    name = submit(
        f"stages: {{one: {{command: [sh, hostile.sh, '{size}'], inputs: [hostile.sh], "
        "request_memory: 64 MB, request_disk: 500 MB}}"
    )
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "running")
    job, dag = view["stages"]["one"]["job"], view["dag"].split("#")[1]
    while condorctl("fetch", job, "ready").returncode:
        time.sleep(0.5)

    # Nothing leads out of the sandbox, nothing waits for a FIFO, and a name drives no terminal.
    for path in ("etc/passwd", "etc", "d/evil", "d/fifo", "up", "dangling", "/etc/passwd", "../x"):
        one_error_line(condorctl("fetch", job, path, timeout=60))
    for path in ("loop", "nothing", "x*"):
        assert f"has no {path}" in one_error_line(condorctl("fetch", job, path, timeout=60))
    answer = condorctl("fetch", job, "d", "a b", "--to", "got")
    assert answer.returncode == 0, answer
    assert "left out: d/evil" in answer.stderr
    assert "\x1b" not in answer.stdout + answer.stderr
    got = {str(p.relative_to("got")) for p in Path("got").rglob("*") if not p.is_dir()}
    odd = {"a b/new\nline \x1b[31mred", 'a b/per%cent \\0101 $(id) "quoted"', "a b/\udce9t\udce9"}
    assert got == {"d/e/f.pt", "d/.h.pt", *odd}

    # Wildcards as a shell has them.
    for pattern, expected in {
        "*.pt": {"good.pt"},
        "d/**": {"d/e/f.pt"},
        "**/*.pt": {"good.pt", "d/e/f.pt"},
        "d/.*": {"d/.h.pt"},
        "[eg]*t*": {"empty", "good.pt"},
    }.items():
        found = files_of(condorctl("fetch", job, pattern, "--json", "--to", "globs"))
        assert {file["path"] for file in found} == expected, pattern

    # A client that is killed leaves what has come; the next brings the rest, and no byte more.
    home = project / "fetched" / job
    partial = home / ".big.bin.partial"
    client = start_fetch(job, "big.bin")
    while not (partial.exists() and partial.stat().st_size > size // 8):
        assert client.poll() is None, client.communicate()
    client.kill()
    client.wait()
    had = partial.stat().st_size
    assert 0 < had < size
    assert not (home / "big.bin").exists()
    count, _ = counted(job, "big.bin")
    assert size - had <= count < size - had + 1000
    assert sha256(home / "big.bin") == condorctl("ssh", job, "cat big.sum").stdout.strip()
    assert not partial.exists()
    # What is here does not come again, one file or a folder.
    assert counted(job, "big.bin")[0] < 1000
    # Half of another file is not taken for half of this one.
    partial.write_bytes(b"x" * 1000)
    (home / "big.bin").write_bytes(b"y" * size)
    count, [file] = counted(job, "big.bin")
    assert (count > size, file["sha256"]) == (True, sha256(home / "big.bin"))

    # A time limit keeps what has come.
    (home / "big.bin").unlink()
    late = condorctl("fetch", job, "big.bin", "--timeout", "1")
    assert (late.returncode, late.stdout) == (124, "")
    assert "what has come is kept" in one_error_line(late)

    # Two at once do not disturb each other.
    both = [start_fetch(job, "big.bin", "--to", "both") for _ in range(2)]
    for one in both:
        assert one.wait(60) == 0, one.communicate()
    assert sha256(Path("both/big.bin")) == file["sha256"]
    assert [p.name for p in Path("both").iterdir()] == ["big.bin"]

    # A file that grows comes until the job has ended.
    follower = start_fetch(job, "grow.log", "--follow", "--to", "grown")
    while not (Path("grown/grow.log").exists() and len(Path("grown/grow.log").read_text()) > 500):
        assert follower.poll() is None, follower.communicate()
        time.sleep(0.2)
    begun = Path("grown/grow.log").read_text()
    while Path("grown/grow.log").read_text() == begun:
        assert follower.poll() is None, follower.communicate()
        time.sleep(0.2)
    condor("condor_rm", dag)
    # It is not among the job's outputs, so what is here is what its last look saw.
    assert follower.wait(60) == 0, follower.communicate()
    text = Path("grown/grow.log").read_text()
    assert text == "".join(f"line {i + 1}\n" for i in range(text.count("\n")))
    assert text.startswith(begun)
    assert len(text) > len(begun)

    # None of all this left a session behind.
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"condor_ssh_to_job {job}" not in listed.stdout


def test_every_state_gives_what_there_is(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    script = "echo out; echo err >&2; mkdir -p d; echo part > d/x; echo one > record.txt; sleep 300"
    name = submit(
        f"""
        defaults: {{{SMALL}}}
        stages:
          kept:
            template: evaluate.sub.j2
            command: [sh, -c, "{script}"]
            outputs: [record.txt, d/x]
          lost: {{command: [sh, -c, "{script}"], outputs: [record.txt]}}
          never: {{command: ["true"], request_cpus: 500}}
          done: {{command: [sh, -c, "echo out; echo 1 > d/1; echo 2 > d/2"], outputs: [d/1, d/2]}}
          after: {{command: ["true"], needs: [never]}}
        """
    )
    running = {"kept", "lost"}
    view = wait(
        name,
        lambda v: (
            all(v["stages"][s]["state"] == "running" for s in running)
            and v["stages"]["done"]["state"] == "done"
        ),
    )
    jobs = {stage: view["stages"][stage]["job"] for stage in view["stages"]}
    while condorctl("fetch", jobs["kept"], "record.txt", "d/x").returncode:
        time.sleep(0.5)
    while condorctl("fetch", jobs["lost"], "record.txt").returncode:
        time.sleep(0.5)

    # Suspended: the logs still come, nothing else does.
    condor("condor_suspend", jobs["lost"])
    wait(name, lambda v: v["stages"]["lost"]["state"] == "suspended")
    assert "suspended" in one_error_line(condorctl("fetch", jobs["lost"], "record.txt"))
    cluster = jobs["lost"].split(".")[0]
    files = files_of(condorctl("fetch", jobs["lost"], "--json", "--to", "s"))
    assert {file["path"] for file in files} == {f"{cluster}.out", f"{cluster}.err", "events.log"}
    assert Path(f"s/{cluster}.out").read_text() == "out\n"

    # Evicted with its files, and waiting for a slot: they are in the spool.
    condor("condor_qedit", jobs["kept"], "Requirements", "false")
    condor("condor_vacate_job", jobs["kept"])
    wait(name, lambda v: v["stages"]["kept"]["state"] == "idle")
    answer = condorctl("fetch", "kept", "--to", "e")
    assert "it was evicted and waits to start again" in answer.stderr
    cluster = jobs["kept"].split(".")[0]
    assert Path(f"e/{cluster}.out").read_text() == "out\n"
    assert Path(f"e/{cluster}.err").read_text().startswith("err\n")
    files = files_of(condorctl("fetch", f"{name}/kept", "record.txt", "d", "--json", "--to", "e"))
    assert {file["path"] for file in files} == {"record.txt", "d/x"}
    assert "has no nothing: it was evicted" in one_error_line(condorctl("fetch", "kept", "nothing"))

    # Held after it ran, with and without its files; held before it ran.
    for job in (jobs["kept"], jobs["never"]):
        condor("condor_hold", "-reason", "wanted to look", job)
    # To HTCondor's own tool a suspended job may be lost by that.
    assert condorctl("hold", jobs["lost"]).returncode == 0
    wait(name, lambda v: all(v["stages"][s]["state"] == "held" for s in ("kept", "lost", "never")))
    assert files_of(condorctl("fetch", "kept", "record.txt", "--json", "--to", "h"))
    lost = condorctl("fetch", "lost", "--to", "h2")
    assert "event log alone" in lost.stderr
    assert "condorctl hold, by " in lost.stderr
    assert [p.name for p in Path("h2").iterdir()] == ["events.log"]
    assert "it never ran, and it is held" in condorctl("fetch", "never", "--to", "h3").stderr
    assert "wanted to look" in one_error_line(condorctl("fetch", "never", "x"))
    assert "has no job yet" in one_error_line(condorctl("fetch", "after"))

    # A whole run: what is done of it.
    of_run = condorctl("fetch", name, "--to", "run")
    assert of_run.returncode == 0
    assert f"{name}/lost: not done" in of_run.stderr
    assert {str(p.relative_to("run")) for p in Path("run").rglob("*") if p.is_file()} == {
        "done/d/1", "done/d/2",
    }  # fmt: skip

    # Gone from the queue, from another folder than that of the project.
    condor("condor_rm", view["dag"].split("#")[1])
    wait(name, ended)
    assert not condor("condor_q", "-af", "ClusterId").strip()
    files = files_of(condorctl("fetch", jobs["done"], "d", "--json", "--to", "g"))
    assert {file["path"] for file in files} == {"d/1", "d/2"}
    # What was changed since is not what the job wrote.
    (project / "exp" / "runs" / name / "done" / "d" / "1").write_text("9\n")
    (project / "g" / "d" / "1").unlink()
    assert "is not what the job wrote" in one_error_line(
        condorctl("fetch", jobs["done"], "d/1", "--to", "g")
    )


def test_foreign_jobs_spooled_remapped_and_many_of_one_cluster(
    pool: Path, condorctl: Condorctl, condor: Condor, wait: Wait, project: Path
) -> None:
    (project / "where to").mkdir()
    script = "echo says $1; echo made $1 > model.pt; mkdir d; echo $1 > d/x"
    (project / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
    common = (
        "executable = job.sh\nshould_transfer_files = YES\nrequest_memory = 64 MB\n"
        "request_disk = 50 MB\narguments = $(Process)\noutput = $(Cluster).$(Process).out\n"
        "error = $(Cluster).$(Process).err\nlog = all.log\n"
    )
    (project / "many.sub").write_text(
        f"{common}transfer_output_files = model.pt, d\n"
        'transfer_output_remaps = "model.pt = where to/$(Process).pt; d = d$(Process)"\nqueue 2\n'
    )
    (project / "spool.sub").write_text(f"{common}transfer_output_files = model.pt\nqueue\n")
    many = condor("condor_submit", "-terse", "many.sub").split(".")[0]
    spooled = condor("condor_submit", "-terse", "-spool", "spool.sub").split(".")[0]
    names = {}
    for cluster in (many, spooled):
        answer = condorctl("adopt", cluster, "--json")
        names[cluster] = json.loads(answer.stdout)["run"]
    for run in names.values():
        wait(run, ended)

    answer = condorctl("fetch", many, "--json", "--to", "m")
    found = {str(p.relative_to("m")) for p in Path("m").rglob("*.out")}
    assert found == {f"{many}.{proc}/{many}.{proc}.out" for proc in (0, 1)}
    assert {file["job"] for file in files_of(answer)} == {f"{many}.0", f"{many}.1"}
    # Under the names that the job gave them, from where the submit file has sent them.
    assert files_of(condorctl("fetch", f"{many}.1", "model.pt", "--json", "--to", "m1"))
    assert Path("m1/model.pt").read_text() == "made 1\n"

    assert not (project / f"{spooled}.0.out").exists()
    assert condorctl("logs", spooled).stdout == "says 0\n"
    files = files_of(condorctl("fetch", spooled, "model.pt", "--json", "--to", "sp"))
    assert [file["path"] for file in files] == ["model.pt"]
    assert Path("sp/model.pt").read_text() == "made 0\n"
    # It leaves the queue with that, and its files are where it was submitted from.
    assert (project / "model.pt").read_text() == "made 0\n"
    while spooled in condor("condor_q", "-af", "ClusterId").split():
        time.sleep(1)
    again = files_of(condorctl("fetch", spooled, "model.pt", "--json", "--to", "sp2"))
    assert [file["path"] for file in again] == ["model.pt"]
    assert condorctl("logs", spooled).stdout == "says 0\n"
