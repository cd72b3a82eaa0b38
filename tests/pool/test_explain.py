"""`condorctl explain` on a real pool: every kind of trouble, its cause, its line, its mend."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Configure, Status

Told = dict[str, Any]
Explain = Callable[..., Told]

# A stage of each kind that ends, or never starts.
TROUBLES = """\
stages:
  cores: {command: [sleep, "1"], request_cpus: 500}
  gpu: {command: [sleep, "1"], request_gpus: 1}
  system: {command: [sleep, "1"], requirements: OpSysAndVer == "Plan9"}
  raises: {command: [python, raises.py], inputs: [raises.py], retries: 1, outputs: [x.pt]}
  after: {command: [cat, x.pt], inputs: [raises/x.pt]}
  killed: {command: [sh, -c, "kill -9 $PPID"]}
  unwritten: {command: ["true"], outputs: [model.pt]}
  unknown: {command: [nosuchprogram]}
"""
# And of each kind that is held, of which one goes on, and one that ends well.
HELD = """\
stages:
  crlf: {command: ["true"], template: crlf.sub.j2}
  plain: {command: ["true"], template: plain.sub.j2}
  eats: {command: [python, eats.py], inputs: [eats.py], request_memory: 64 MB,
         template: memory.sub.j2}
  stopped: {command: [sleep, "99"]}
  first: {command: [sh, -c, echo x >x.txt], outputs: [x.txt]}
  needs: {command: [cat, first/x.txt], inputs: [first/x.txt], template: later.sub.j2}
"""


@pytest.fixture
def explain(condorctl: Condorctl) -> Explain:
    """What `condorctl explain --json` says."""

    def run(*words: str) -> Told:
        answer = condorctl("explain", *words, "--json")
        assert answer.returncode == 0, answer
        told: Told = json.loads(answer.stdout)
        return told

    return run


@pytest.fixture
def memory_policy(configure: Configure) -> None:
    """The pool holds jobs that ask for it when they use more memory than they asked for."""
    configure(
        "SYSTEM_PERIODIC_HOLD_NAMES = $(SYSTEM_PERIODIC_HOLD_NAMES) TOOMUCH\n"
        "SYSTEM_PERIODIC_HOLD_TOOMUCH = TestMemory =?= true && MemoryUsage > RequestMemory\n"
        'SYSTEM_PERIODIC_HOLD_TOOMUCH_REASON = "more memory used than requested"\n'
        "SYSTEM_PERIODIC_HOLD_TOOMUCH_SUBCODE = 102\n"
    )


def _evidence(told: Told, name: str) -> list[str]:
    """The lines of the evidence from the file called `name`; each must stand there."""
    found = []
    for line in told["evidence"]:
        text = Path(line["file"]).read_text(errors="replace").splitlines()[line["line"] - 1]
        assert text.rstrip() == line["text"]
        if Path(line["file"]).name == name:
            found.append(line["text"].strip())
    return found


def _settled(view: Status) -> bool:
    states = {name: stage["state"] for name, stage in view["stages"].items()}
    wrong = ("raises", "killed", "unwritten", "unknown")
    return all(states[name] == "failed" for name in wrong)


def test_what_failed_and_what_never_starts(
    project: Path,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    explain: Explain,
    condorctl: Condorctl,
) -> None:
    (project / "raises.py").write_text("def f():\n    import nosuchmodule\n\nf()\n")
    run = submit(TROUBLES)
    # Asked at once, before the negotiator was: no cause is made up, nobody is sent away.
    assert explain("cores")["cause"]
    view = wait(run, _settled)
    told = {one["stage"]: one for one in explain(run)["jobs"]}
    assert set(told) == set(view["stages"]) - {"after"}

    cores = told["cores"]
    assert cores["cause"] == "no slot will ever fit: it asks for 500 cores; the largest slot has 8"
    assert f"condor_qedit {cores['job']} RequestCpus 8`" in cores["mend"]
    assert cores["analysis"]["excluding"] == ["TARGET.Cpus >= RequestCpus"]
    assert _evidence(cores, "stage.sub") == ["request_cpus            = 500"]
    assert told["gpu"]["cause"] == "no slot will ever fit: it asks for a GPU; no slot has any"
    system = told["system"]
    assert 'none meets OpSysAndVer == "Plan9" (OpSysAndVer is' in system["cause"]
    assert _evidence(system, "stage.sub") == ['requirements = OpSysAndVer == "Plan9"']

    raises = told["raises"]
    job = raises["job"].partition(".")[0]
    assert raises["cause"].startswith("the Python that ran it has no module nosuchmodule")
    assert "tried 2 of at most 2 times" in raises["cause"]
    assert raises["tried"] == {"times": 2, "most": 2}
    assert (
        _evidence(raises, f"{job}.err")[-1] == "ModuleNotFoundError: No module named 'nosuchmodule'"
    )
    assert (
        explain(f"{run}/after")["cause"] == "it does not run, since raises, which it needs, failed"
    )
    assert "signal 9, SIGKILL" in told["killed"]["cause"]
    assert told["unwritten"]["cause"] == "the command ended well but did not write model.pt"
    assert told["unknown"]["cause"] == "the node has no program 'nosuchprogram'"
    assert all("condorctl submit test" in told[name]["mend"] for name in ("unwritten", "unknown"))

    # The same by every name of the job, as text, and in 80 columns of it.
    assert explain(cores["id"])["cause"] == cores["cause"] == explain(cores["job"])["cause"]
    words = condorctl("explain", cores["job"])
    assert words.returncode == 0
    assert words.stdout.startswith(f"{run}/cores  job {cores['job']}  idle\n  why   no slot")
    assert "one_error" not in one_error_line(condorctl("explain", "9999"))
    assert condorctl("rm", run).returncode in (0, 2)


def test_what_is_held(
    project: Path,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    explain: Explain,
    condorctl: Condorctl,
    memory_policy: None,
) -> None:
    for name, text, mode in (
        ("crlf.sh", "#!/bin/sh\r\ntrue\r\n", 0o755),
        ("plain.sh", "#!/bin/sh\n: >_condorctl_job\n", 0o644),
    ):
        (project / name).write_text(text, newline="")
        (project / name).chmod(mode)
    (project / "eats.py").write_text("import time\nx = bytearray(300 << 20)\ntime.sleep(90)\n")
    templates = project / "templates"
    templates.mkdir()
    extra = {
        # HTCondor asks no question about a program that is not transferred.
        "crlf": f"executable = {project}/crlf.sh\ntransfer_executable = false",
        "plain": f"executable = {project}/plain.sh\ntransfer_executable = false",
        "memory": "+TestMemory = true",
        "later": "hold = true",
    }
    for name, lines in extra.items():
        (templates / f"{name}.sub.j2").write_text(
            '{% extends "stage.sub.j2" %}\n{% block extra %}\n' + lines + "\n{% endblock %}\n"
        )
    run = submit(HELD)
    view = wait(run, lambda view: view["stages"]["stopped"]["state"] == "running")
    condor("condor_hold", view["stages"]["stopped"]["job"])
    wanted = {"crlf", "plain", "eats", "stopped"}
    view = wait(
        run,
        lambda view: (
            all(view["stages"][name]["state"] == "held" for name in wanted)
            and view["stages"]["needs"]["job"]
        ),
    )
    told = {one["stage"]: one for one in explain(run)["jobs"]}
    # HTCondor's log does not say that a job was submitted on hold; the queue does.
    assert set(told) == wanted | {"needs"}
    assert told["needs"]["state"] == "held"

    crlf = told["crlf"]
    assert "crlf.sh has Windows line ends (CRLF)" in crlf["cause"]
    assert crlf["mend"].endswith(f"then `condorctl release {crlf['job']}`")
    assert crlf["analysis"]["code"] == 6
    assert any("invalid interpreter (/bin/sh" in line for line in _evidence(crlf, "events.log"))
    assert "plain.sh has no execute permission" in told["plain"]["cause"]
    assert "`chmod +x " in told["plain"]["mend"]
    eats = told["eats"]
    assert eats["analysis"] | {"reason": ""} == {"code": 26, "subcode": 102, "reason": ""}
    used = re.search(r"it asked for 64 MB, was seen to use (\d+) MB", eats["cause"])
    assert used
    assert 64 < int(used[1]) < 1000
    assert f"condor_qedit {eats['job']} RequestMemory " in eats["mend"]
    assert told["stopped"]["cause"] == "held by its owner"
    assert told["stopped"]["mend"] == f"`condorctl release {told['stopped']['job']}`"
    assert told["needs"]["cause"] == "submitted on hold, on purpose"

    # An input that goes away while the job waits.
    folder = Path(view["folder"])
    (folder / "first" / "x.txt").unlink()
    number = view["stages"]["needs"]["job"]
    condor("condor_release", number)
    wait(run, lambda v: (v["stages"]["needs"]["hold"] or {}).get("code") == 13)
    needs = explain(number)
    assert needs["cause"].startswith("an input file could not be sent: first has left no ")
    assert f"condorctl explain {run}/first" in needs["mend"]
    (folder / "first" / "x.txt").write_text("again\n")
    assert "it is there now" in explain(number)["cause"]

    # What it says mends it does.
    (project / "plain.sh").chmod(0o755)
    (project / "crlf.sh").write_text("#!/bin/sh\ntrue\n")
    for name in ("crlf", "plain", "needs"):
        condor("condor_release", view["stages"][name]["job"])
    wait(run, lambda v: all(v["stages"][name]["state"] == "done" for name in ("plain", "needs")))
    wait(run, lambda v: (v["stages"]["crlf"]["hold"] or {}).get("code") == 12)
    # It starts now, but is not the stage's wrapper, which writes a record of itself.
    assert explain("crlf")["cause"].startswith("the stage was never started: its wrapper")
    assert {one["stage"] for one in explain(run)["jobs"]} == {"crlf", "eats", "stopped"}
    condor("condor_rm", view["dag"].rpartition("#")[2])
    wait(run, lambda view: bool(view["finished"]))
    removed = explain("stopped")
    assert removed["state"] == "removed"
    assert f"`condorctl resume {run}` runs it again" in removed["mend"]


def test_a_busy_pool_a_run_that_is_well_and_a_schedd_that_is_silent(
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    explain: Explain,
    condorctl: Condorctl,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = submit('stages:\n  all: {command: [sleep, "99"], request_cpus: 8}\n')
    view = wait(run, lambda view: view["stages"]["all"]["state"] == "running")
    assert explain(run)["jobs"] == []
    assert condorctl("explain").stdout == f"{run}: running; nothing in it needs you\n"
    assert explain("all")["cause"].startswith("it runs on ")

    other = submit('stages:\n  waits: {command: [sleep, "1"]}\n')
    wait(other, lambda view: view["stages"]["waits"]["state"] == "idle")
    deadline = time.monotonic() + 120
    # The collector hears of the claim seconds after it was made.
    while "is busy" not in (told := explain("waits"))["cause"]:
        assert time.monotonic() < deadline, told
        time.sleep(1)
    assert "(8 of 8 cores in use)" in told["cause"]
    assert "none of yours come before it" in told["cause"]
    assert told["mend"].startswith("wait")
    assert told["analysis"]["never"] is False
    # It waits for a good reason: nobody is needed.
    assert explain(other)["jobs"] == []

    with monkeypatch.context() as env:
        env.setenv("XDG_STATE_HOME", str(tmp_path / "nothing"))
        silent = explain(f"{other}/waits")
    assert silent["cause"] == "it waited in the queue when the schedd last answered"
    assert "no HTCondor answers" in silent["note"]
    assert " ago" in silent["note"]
    condor("condor_rm", view["dag"].rpartition("#")[2])
    wait(other, lambda view: view["state"] == "done", timeout=200)
    assert explain("waits")["cause"].startswith("it ended well on ")
