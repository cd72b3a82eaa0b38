"""Jobs that are stopped in every way there is end as undisturbed ones, with little done twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from condorctl.job.folder import Folder
from tests.conftest import Condorctl
from tests.pool.conftest import Status

Submit = Callable[..., str]
Wait = Callable[..., Status]

# A stage in plain Python: no step is the same as another, and a file outside tells each of them.
# Another one lets it come to its end.
COUNT = """
import json, os, sys, time
from condorctl.job import checkpoint, progress, save

log, steps = sys.argv[1], 200
state = checkpoint.load(read=lambda path: json.load(open(path))) or {"step": 0, "sum": 0}
keep = lambda path: json.dump(state, open(path, "w"))
print("begins at", state["step"], flush=True)
while state["step"] < steps:
    if state["step"] == 150 and not os.path.exists(log + ".go"):
        time.sleep(0.1)
        if checkpoint.due():
            checkpoint.save(keep, epoch=state["step"] // 4)
        continue
    state["step"] += 1
    state["sum"] = (state["sum"] * 31 + state["step"]) % 1000003
    with open(log, "a") as file:
        file.write(f"{state['step']}\\n")
    time.sleep(0.2)
    if state["step"] % 4 == 0:
        progress(epoch=state["step"] // 4, epochs=steps // 4, sum=state["sum"])
    if checkpoint.due():
        checkpoint.save(keep, epoch=state["step"] // 4)
save("out.txt", lambda path: open(path, "w").write(str(state["sum"])), epoch=steps // 4)
"""
STEP_S = 0.2
COPY_S = 1


def pid_of(job: str, word: str) -> int:
    """The process of the job that has `word` among its arguments, on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word not in (process / "cmdline").read_text().split("\0"):
                continue
            environment = (process / "environ").read_bytes().decode(errors="replace")
            ad = re.search(r"_CONDOR_JOB_AD=([^\0]*)", environment)
            found = ad and re.search(r"^ClusterId = (\d+)$", Path(ad[1]).read_text(), re.MULTILINE)
            if found and found[1] == job.partition(".")[0]:
                return int(process.name)
    raise AssertionError(f"job {job} has no process with {word}")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The record that the job left, times apart."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in one.items() if key != "time"} for one in records]


def test_whatever_stops_a_job_its_end_is_that_of_an_undisturbed_one(
    submit: Submit, wait: Wait, status: Callable[[str], Status], condorctl: Condorctl,
    condor: Callable[..., str], project: Path, tmp_path: Path,
) -> None:  # fmt: skip
    (project / "count.py").write_text(COUNT)
    network = [
        *("model.widths=[4,8]", "model.blocks=[1,1]", "train.epochs=60", "train.ema=0.9"),
        *("train.batch_size=64", "adversary.steps=2", "adversary.validation_steps=1"),
    ]
    settings = json.dumps([word for setting in network for word in ("--set", setting)])[1:-1]
    ways = ["none", "soft", "fast", "killed", "self"]
    name = submit(
        f"""
        defaults:
          request_memory: 64 MB
          request_disk: 50 MB
          retries: 2
          outputs: [out.txt, metrics.jsonl]
          checkpoint_copy_interval: {COPY_S} s
        stages:
          count-{{{{ way }}}}:
            matrix: {{way: {json.dumps([way for way in ways if way != "self"])}}}
            command: [python, count.py, "{tmp_path}/count-{{{{ way }}}}"]
            inputs: [count.py]
          count-self:
            command: [python, count.py, "{tmp_path}/count-self"]
            inputs: [count.py]
            checkpoint_interval: 4 s
          train-{{{{ way }}}}:
            matrix: {{way: [none, often]}}
            template: train.sub.j2
            code: [robust]
            command: [python, -m, robust, train, --preset, smoke, {settings}]
            environment: {{OMP_NUM_THREADS: 1}}
            outputs: [checkpoint.pt, metrics.jsonl]
            request_memory: 1 GB
        """
    )
    folder = project / "exp" / "runs" / name

    def reaches(stage: str, epoch: int) -> Callable[[Status], bool]:
        """Whether it runs and has said so in this start of the job."""

        def reached(view: Status) -> bool:
            one = view["stages"][stage]
            job = one["jobs"][-1] if one["jobs"] else {}
            told = job.get("progress") or {"time": 0, "epoch": 0}
            said = one["state"] == "running" and told["time"] > job["started"]
            return said and bool(told["epoch"] >= epoch)

        return reached  # fmt: skip

    def stop(stage: str, how: str, word: str = "count.py") -> None:
        job = status(name)["stages"][stage]["job"]
        if how == "killed":
            os.kill(pid_of(job, word), signal.SIGKILL)
        else:
            condor("condor_vacate_job", *(["-fast"] if how == "fast" else []), job)

    # --- training once, and each counter; then training twice more ---
    wait(name, reaches("train-often", 3))
    stop("train-often", "soft", "robust")
    view = wait(name, lambda view: all(reaches(f"count-{way}", 6)(view) for way in ways))
    before = {way: view["stages"][f"count-{way}"]["job"] for way in ways}

    for way in ("soft", "fast", "killed"):
        stop(f"count-{way}", way)

    # At once: on a busy machine the training would end before it was stopped.
    for how in ("fast", "killed"):
        epoch = status(name)["stages"]["train-often"]["epoch"]
        wait(name, reaches("train-often", epoch + 3))
        stop("train-often", how, "robust")
    wait(name, reaches("train-often", epoch + 5))

    listed = json.loads(condorctl("checkpoints", name, "--json").stdout)["checkpoints"]
    newest = {one["stage"]: one for one in listed if one["newest"]}
    assert set(newest) >= {f"count-{way}" for way in ways}
    places = {place.partition(" on ")[0] for one in listed for place in one["places"]}
    assert {"sandbox", "run folder"} <= places
    # From the running job itself, by a pattern: its names change while one reads them.
    for _ in range(10):
        fetched = condorctl("fetch", before["none"], "checkpoints/*", "--to", "got", "--json")
        if Folder(project / "got" / "checkpoints").checkpoints():
            break
    assert fetched.returncode == 0, fetched
    assert Folder(project / "got" / "checkpoints").checkpoints()
    told = condorctl("checkpoints", name).stdout
    assert re.search(r"^> +count-none .*(sandbox|run folder)", told, re.MULTILINE)

    # Who was told to leave saved its last step, so no step was done twice.
    wait(name, lambda view: view["stages"]["count-soft"]["starts"] > 1)
    steps = (tmp_path / "count-soft").read_text().split()
    assert len(steps) == len(set(steps))

    # --- the whole run out of the queue, and on with it ---
    assert condorctl("cancel", name).returncode == 0
    assert not condor("condor_q", "-allusers", "-af", "ClusterId").strip()
    assert condorctl("resume", name).returncode == 0
    for way in ways:
        (tmp_path / f"count-{way}.go").touch()
    view = wait(name, lambda view: bool(view["finished"]))
    assert view["state"] == "done"

    sums = {(folder / f"count-{way}" / "out.txt").read_text() for way in ways}
    assert len(sums) == 1
    whole = lines(folder / "count-none")
    assert [one["epoch"] for one in whole if one["kind"] == "progress"] == list(range(1, 51))
    for way in ways:
        assert lines(folder / f"count-{way}") == whole
        steps = (tmp_path / f"count-{way}").read_text().split()
        assert set(steps) == {str(step) for step in range(1, 201)}
        stops = 2 if way in ("soft", "fast", "killed") else 1
        # Once a second a checkpoint leaves the node, and a step is a fifth of one.
        assert len(steps) - 200 <= stops * 3 * COPY_S / STEP_S, way
    assert view["stages"]["count-killed"]["job"] != before["killed"]

    # HTCondor itself kept a checkpoint each time that the job ended with 85.
    log = (folder / "count-self" / "events.log").read_text()
    assert log.count("Finished transferring output files") >= 3
    assert "Job was held" not in log

    digests = {
        way: hashlib.sha256((folder / f"train-{way}" / "checkpoint.pt").read_bytes()).hexdigest()
        for way in ("none", "often")
    }
    assert digests["none"] == digests["often"]
    assert lines(folder / "train-none") == lines(folder / "train-often")
    errors = "".join(file.read_text() for file in (folder / "train-often").glob("*.err"))
    assert errors.count("goes on from checkpoint") >= 2

    # What is done needs none of them any more, and the ledger has every epoch once.
    assert not list(folder.glob("*/checkpoints/*"))
    listed = json.loads(condorctl("checkpoints", name, "--json").stdout)["checkpoints"]
    assert {one["path"] for one in listed} == {"out.txt", "checkpoint.pt"}
    rows = json.loads(condorctl("results", name, "--metrics", "--json").stdout)["metrics"]
    epochs = [row["epoch"] for row in rows if row["stage"] == "train-often"]
    assert epochs == list(range(1, 61))
