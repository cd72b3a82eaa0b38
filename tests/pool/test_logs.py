"""What jobs say, in every state and to the end, and a shell beside them, on a real pool."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

Submit = Callable[..., str]
Wait = Callable[..., Status]
Condor = Callable[..., str]

SMALL = "request_memory: 64 MB, request_disk: 50 MB"
CONDORCTL = [sys.executable, "-m", "condorctl"]


def ended(view: Status) -> bool:
    return bool(view["finished"])


def start(*words: str, out: Path) -> subprocess.Popen[bytes]:
    with out.open("wb") as file:
        return subprocess.Popen(
            [*CONDORCTL, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE
        )


def at_a_terminal(words: Sequence[str], steps: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Run a command at a terminal; when it shows the first of a step, type the second."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(words[0], words)
    shown, seen, left = b"", 0, list(steps)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
        if left and (at := shown.find(left[0][0].encode(), seen)) >= 0:
            seen = at + len(left[0][0])
            time.sleep(0.3)
            os.write(terminal, left.pop(0)[1].encode())
    else:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode(errors="replace")


def test_following_goes_on_through_an_eviction_and_a_retry_without_a_line_lost_or_told_twice(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    # Equal lines, so that a guess by their text would go wrong; no newline at the very end.
    (project / "say.sh").write_text(
        'begun=$(cat record.txt); echo "start $((begun+1))"; echo $((begun+1)) > record.txt\n'
        "for i in 1 2 3 4 5 6; do echo same; printf 'no end'; sleep 1; echo; done\n"
        "[ $begun -gt 0 ] || sleep 30\n"
        "printf 'the end'; exit 5\n"
    )
    name = submit(
        f"""
        defaults: {{{SMALL}, inputs: [say.sh]}}
        stages:
          one:
            template: evaluate.sub.j2
            command: [sh, say.sh]
            outputs: [record.txt]
            retries: 1
          idle: {{command: ["true"], request_cpus: 500}}
        """
    )
    follower = start("logs", "-f", f"{name}/one", out=Path("followed"))
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "running")
    job = view["stages"]["one"]["job"]
    one = start("logs", "--follow", job, out=Path("of job"))
    block = "same\nno end\n" * 6
    while Path("followed").read_text() != f"start 1\n{block}":
        assert follower.poll() is None, follower.communicate()
        time.sleep(0.2)
    condor("condor_vacate_job", job)

    first = f"start 1\n{block}start 2\n{block}the end"
    assert follower.wait(120) == 1, follower.communicate()
    text, remarks = Path("followed").read_text(), follower.communicate()[1].decode()
    # The record came along with the eviction, and not into the second attempt.
    assert text.startswith(first), text
    assert text.removeprefix(first).startswith("start 1\n"), text
    assert "was evicted and has started again" in remarks
    assert "is the next attempt" in remarks
    assert (one.wait(60), Path("of job").read_text()) == (1, first)
    condor("condor_rm", view["dag"].split("#")[1])


def test_every_state_says_what_there_is(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    (project / "colours.sh").write_text(
        "printf 'a\\tb\\033[31mred\\033[0m\\033]0;owned\\007 10%%\\r20%%\\r30%%\\n\\303\\377\\n'; "
        "echo err >&2; for i in 1 2 3 4 5; do echo $i; done; sleep $1\n"
    )
    name = submit(
        f"""
        defaults: {{{SMALL}, inputs: [colours.sh]}}
        stages:
          runs: {{command: [sh, colours.sh, "300"]}}
          done: {{command: [sh, colours.sh, "0"]}}
          idle: {{command: ["true"], request_cpus: 500}}
        """
    )
    view = wait(
        name,
        lambda v: (
            (v["stages"]["runs"]["state"], v["stages"]["done"]["state"]) == ("running", "done")
        ),
    )
    jobs = {stage: view["stages"][stage]["job"] for stage in view["stages"]}
    raw = b"a\tb\x1b[31mred\x1b[0m\x1b]0;owned\x07 10%\r20%\r30%\n\xc3\xff\n1\n2\n3\n4\n5\n"
    while "5\n" not in condorctl("logs", "runs", "--json").stdout.replace("\\n", "\n"):
        time.sleep(0.5)
    for job in ("runs", jobs["done"]):
        piped = subprocess.run([*CONDORCTL, "logs", job], capture_output=True, check=True)
        assert piped.stdout == raw
        # A terminal gets lines, and is not driven.
        code, shown = at_a_terminal([*CONDORCTL, "logs", job], [])
        assert code == 0
        assert shown.replace("\r\n", "\n").startswith("30%\n��\n1\n2\n"), shown
        assert "\x1b" not in shown
        assert condorctl("logs", job, "--err").stdout == "err\n"
        assert condorctl("logs", job, "--lines", "2").stdout == "4\n5\n"
    view_of_runs = json.loads(condorctl("logs", "runs", "-n", "1", "--json").stdout)["jobs"]
    assert [(j["job"], j["state"], j["text"]) for j in view_of_runs] == [
        (jobs["runs"], "running", "5\n")
    ]
    told = condorctl("logs", "done", "--events").stdout.splitlines()
    words = [line.split("  ", 1)[1] for line in told]
    assert words[0] == "submitted"
    assert any(word.startswith("started on slot1") for word in words)
    assert words[-1] == "ended with exit code 0"
    followed = condorctl("logs", "-f", "done", "--events")
    assert (followed.returncode, followed.stdout.splitlines()) == (0, told)
    assert "it has not started" in one_error_line(condorctl("logs", "idle"))
    assert "name one of them" in one_error_line(condorctl("logs", "done", "--err", "--events"))
    dag = condorctl("logs", view["dag"], "-n", "5000")
    assert "ULOG_EXECUTE" in dag.stdout
    assert "started on" in condorctl("logs", view["dag"], "--events").stdout

    # Ctrl-C ends it, and leaves nothing behind.
    follower = start("logs", "-f", "runs", out=Path("cut"))
    while not Path("cut").read_bytes().endswith(b"5\n"):
        time.sleep(0.2)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(10) == 130
    assert follower.communicate()[1] == b""

    # A shell beside the job, and a command with its exit status.
    answer = condorctl("ssh", "runs", "cat; echo out; echo err >&2; exit 3")
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "out\n", "err\n")
    words = ["printf", "%s|", "a b", "it's", "$HOME", "\\0101", "x\ny", "*", "é"]
    assert condorctl("ssh", jobs["runs"], *words).stdout == "|".join([*words[2:], ""])
    assert condorctl("ssh", "runs", "kill -9 $$").returncode == 137
    assert "no terminal" in one_error_line(condorctl("ssh", "runs"))
    assert "it has not started" in one_error_line(condorctl("ssh", "idle", "true"))
    assert "it is completed" in one_error_line(condorctl("ssh", "done", "true"))
    assert "has no sandbox" in one_error_line(condorctl("ssh", view["dag"], "true"))
    steps = [("$ ", "echo $((40+2)) > typed; tty; cat typed\n"), ("/dev/pts", "exit 7\n")]
    code, shown = at_a_terminal([*CONDORCTL, "ssh", "runs"], steps)
    assert code == 7, shown
    assert "42" in shown
    assert condorctl("ssh", "runs", "cat typed").stdout == "42\n"

    # Held after it ran: nothing of it was kept, and following ends where nobody can release it.
    condor("condor_hold", "-reason", "wanted to look", jobs["runs"])
    assert "wanted to look" in one_error_line(condorctl("logs", jobs["runs"]))
    held = condorctl("logs", "-f", "runs")
    assert held.returncode == 1
    assert "wanted to look" in held.stderr
    # Gone from the queue.
    condor("condor_rm", view["dag"].split("#")[1])
    wait(name, ended)
    assert condorctl("logs", jobs["done"], "-n", "1").stdout == "5\n"
    assert "it was removed" in one_error_line(condorctl("logs", jobs["runs"]))


def test_a_shell_on_a_slot_as_a_stage_has_it(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    (project / "own.txt").write_text("own\n")
    spec = f"""
        defaults: {{{SMALL}}}
        stages:
          first: {{command: [sh, -c, "echo made > m.pt"], outputs: [m.pt]}}
          second:
            command: [sh, -c, "cat first/m.pt > x"]
            inputs: [first/m.pt, own.txt]
            environment: {{WORD: "it's a \\"b\\""}}
            outputs: [x]
        """
    name = submit(spec)
    wait(name, ended)
    words = ["submit", "--interactive", "second", "test"]
    assert "no terminal" in one_error_line(condorctl(*words))
    assert "needs first/m.pt: --reuse RUN" in one_error_line(condorctl(*words, "-c", "true"))
    assert "did you mean 'second'" in one_error_line(
        condorctl("submit", "--interactive", "secnd", "test", "-c", "true")
    )
    words += ["--reuse", name]
    line = 'echo "$WORD"; cat first/m.pt own.txt; ls code; ls x; exit 4'
    answer = condorctl(*words, "-c", line)
    assert answer.returncode == 4, answer
    assert answer.stdout == 'it\'s a "b"\nmade\nown\ncondorctl\n'
    assert not condor("condor_q", "-af", "ClusterId").strip()

    steps = [("$ ", 'echo "<$WORD>" $((40+2))\n'), ("> 42", "exit 7\n")]
    code, shown = at_a_terminal([*CONDORCTL, *words], steps)
    assert code == 7, shown
    assert '<it\'s a "b"> 42' in shown
    assert not condor("condor_q", "-af", "ClusterId").strip()
    # It is in no run, and its folder is gone.
    assert sorted(p.name for p in (project / "exp" / "runs").iterdir()) == [name]
    assert not (project / "exp" / "runs" / name / "second" / "interactive.log").exists()
