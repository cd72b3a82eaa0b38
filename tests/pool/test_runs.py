"""Whole runs on a real pool, through the command line alone."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Configure, Status, until

Submit = Callable[..., str]
Wait = Callable[..., Status]

SMALL = "request_memory: 64 MB, request_disk: 50 MB"
HOSTILE = [
    "", " ", "a b", "a  b ", "'", "''", '"', 'a"b', "$", "$$", "$5", "a$$b", "$HOME", "`id`",
    ";", "&", "|", "%", "%s", "#", "\\", "\\n", "*", "~", "-n", "--", "{x}", "a,b", "a=b", "\t",
    "tab\there", "é ☃ 日本", "(x)", "<x>", "!", "[1]", "0.10", "x" * 5000,
]  # fmt: skip


def done(view: Status) -> bool:
    return bool(view["finished"])


def test_files_arguments_and_environment_reach_each_stage_unchanged(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str], project: Path
) -> None:
    words = json.dumps(HOSTILE, ensure_ascii=False)
    name = submit(
        f"""
        params: {{epochs: 1, word: x}}
        defaults: {{{SMALL}}}
        stages:
          first:
            command: [python, work.py, "{{{{ epochs }}}}"]
            inputs: [work.py]
            outputs: [model.pt, metrics.jsonl]
          second:
            command: [python, tell.py, "{{{{ word }}}}", {words[1:-1]}]
            inputs: [tell.py, first/model.pt]
            outputs: [told.json, first/model.pt]
            environment: {{A: "b 'c' \\"d\\" $e", B: ""}}
        """,
        "--set", "epochs=2", "--set", "word=it's $5; \"quoted\"",
    )  # fmt: skip
    answer = condorctl("follow", name)
    assert answer.returncode == 0, answer
    assert "second  done" in answer.stdout
    folder = project / "exp" / "runs" / name
    arguments, environment = json.loads((folder / "second" / "told.json").read_text())
    assert arguments == ['it\'s $5; "quoted"', *HOSTILE]
    assert (environment["A"], environment["B"]) == ("b 'c' \"d\" $e", "")
    # The file of the first stage was in the second job's sandbox, under the first one's name.
    assert (folder / "second" / "first" / "model.pt").read_text() == "2"

    view = wait(name, done)
    assert [s["state"] for s in view["stages"].values()] == ["done", "done"]
    first = view["stages"]["first"]
    assert (first["epoch"], first["epochs"], first["metrics"]) == (2, 2, {"loss": 0.5})
    assert first["checkpoint"]["place"] == str(folder / "first" / "model.pt")
    rows = json.loads(condorctl("results", name, "--json").stdout)["results"]
    assert rows == [{"run": name, "stage": "first", "model": "m", "clean": 0.5}]

    # The ids in the ledger are HTCondor's own.
    cluster = view["dag"].split("#")[1].split(".")[0]
    history = condor(
        "condor_history", "-const", f"DAGManJobId == {cluster}", "-af:j", "DAGNodeName"
    )
    told = {tuple(line.split()) for line in history.splitlines()}
    assert told == {(s["job"], n) for n, s in view["stages"].items()}


def test_a_matrix_runs_every_combination_and_a_table_gathers_their_results(
    submit: Submit, wait: Wait, condorctl: Condorctl, project: Path
) -> None:
    (project / "report.py").write_text(
        "import sys\n"
        "from condorctl import job\n"
        "ratio, seed = map(int, sys.argv[1:])\n"
        "job.result(ratio=ratio, clean=(seed + 1) / 4, details={'seed': [seed]})\n"
    )
    name = submit(
        """
        params: {seeds: [0], ratios: [90, 99], data: ""}
        defaults: {request_memory: 64 MB, request_disk: 50 MB}
        stages:
          run-{{ ratio }}-{{ seed }}:
            matrix: {seed: "{{ seeds }}", ratio: "{{ ratios }}"}
            command: [python, report.py, "{{ ratio }}", "{{ seed }}"]
            inputs: [report.py, "{{ data }}"]
            outputs: [metrics.jsonl]
          all:
            command: [sh, -c, "cat run-*/metrics.jsonl > all.txt"]
            inputs: ["run-*/metrics.jsonl"]
            outputs: [all.txt]
        tables:
          - title: All
            columns: {Clean: clean}
            reference: study
            rows: [{label: pruned, match: {ratio: 90}, reference: {Clean: 76.66}}]
        """,
        "--set", "seeds=0,1",
    )  # fmt: skip
    view = wait(name, done)
    assert view["state"] == "done", view
    assert view["params"] == {"seeds": [0, 1], "ratios": [90, 99], "data": ""}
    assert list(view["stages"]) == ["run-90-0", "run-99-0", "run-90-1", "run-99-1", "all"]
    gathered = project / "exp" / "runs" / name / "all" / "all.txt"
    assert len(gathered.read_text().splitlines()) == 4
    # Of 25 and 50: the mean, and the root of (12.5² + 12.5²) / 1.
    table = condorctl("results", name).stdout
    assert "37.50 ± 17.68 (2)  76.66" in table
    saved = condorctl("results", name, "--save", "saved", "--json")
    assert condorctl("results", "--from", "saved", "--json").stdout == saved.stdout
    row = json.loads((project / "saved" / f"{name}.run-99-1.json").read_text())
    assert row["values"] == {"ratio": 99, "clean": 0.5, "details": {"seed": [1]}}
    assert (row["job"], row["attempt"]) == (view["stages"]["run-99-1"]["job"], 1)
    assert view["submitted"] - 1 < row["submitted"] <= row["started"] <= row["finished"]
    assert row["host"].startswith("slot1")


def test_the_ledger_needs_neither_the_queue_nor_the_folder_one_stands_in(
    submit: Submit, wait: Wait, condorctl: Condorctl, tmp_path: Path
) -> None:
    name = submit(f"stages: {{one: {{command: ['true'], {SMALL}}}}}")
    wait(name, done)
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "no pool")}
    answer = subprocess.run(
        [sys.executable, "-m", "condorctl", "status", name, "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    view = json.loads(answer.stdout)
    assert (view["state"], view["stages"][0]["state"]) == ("done", "done")
    table = condorctl("status").stdout
    assert name in table
    assert "\x1b" not in table


def test_failures_are_retried_unless_no_retry_can_mend_them(
    submit: Submit, wait: Wait, condorctl: Condorctl, project: Path
) -> None:
    name = submit(
        f"""
        defaults: {{{SMALL}, retries: 1, final_exit_codes: [2]}}
        stages:
          flaky: {{command: [sh, -c, "echo tried; exit 5"], outputs: [x]}}
          wrong: {{command: [sh, -c, "exit 2"]}}
          silent: {{command: ["true"], outputs: [never.pt], retries: 0}}
          after: {{command: ["true"], needs: [flaky]}}
        """
    )
    answer = condorctl("follow", name)
    assert answer.returncode == 1
    assert "flaky" in answer.stderr
    assert "failed with exit code 5" in answer.stderr
    stages = wait(name, done)["stages"]
    assert [(n, s["state"], s["attempt"]) for n, s in stages.items()] == [
        ("flaky", "failed", 2), ("wrong", "failed", 1), ("silent", "failed", 1),
        ("after", "not run", None),
    ]  # fmt: skip
    assert stages["silent"]["ended_with"] == "exit code 74: an output was not written"
    # Each attempt has kept its own output.
    outs = sorted((project / "exp" / "runs" / name / "flaky").glob("*.out"))
    assert [out.read_text() for out in outs] == ["tried\n", "tried\n"]
    error = condorctl("fetch", stages["silent"]["job"])
    assert error.returncode == 0
    assert (
        "did not write never.pt"
        in (
            project / "fetched" / stages["silent"]["job"] / f"{stages['silent']['job'][:-2]}.err"
        ).read_text()
    )


def test_a_running_job_shows_its_epoch_and_gives_its_files(
    submit: Submit, wait: Wait, status: Callable[[str], Status], condorctl: Condorctl, project: Path
) -> None:
    name = submit(
        """
        stages:
          train:
            command: [python, work.py, 300]
            inputs: [work.py]
            outputs: [model.pt, metrics.jsonl]
            request_memory: 64 MB
        """
    )
    early = wait(name, lambda view: bool(view["stages"]["train"]["epoch"]))["stages"]["train"]
    later = wait(name, lambda view: view["stages"]["train"]["epoch"] > early["epoch"])
    train = later["stages"]["train"]
    assert train["state"] == "running"
    assert train["host"].startswith("slot1")
    assert train["metrics"]["loss"] < early["metrics"]["loss"]
    assert train["checkpoint"]["epoch"] >= early["epoch"]

    job = train["job"]
    files = json.loads(condorctl("fetch", job, "--json").stdout)["files"]
    cluster = job.split(".")[0]
    folder = project / "fetched" / job
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{cluster}.err", f"{cluster}.out", "events.log",
    ]  # fmt: skip
    assert (folder / f"{cluster}.out").read_text().startswith("epoch 1\nepoch 2\n")
    assert {file["bytes"] for file in files} == {p.stat().st_size for p in folder.iterdir()}

    got = condorctl("fetch", job, "model.pt", "code/condorctl", "--to", "else where")
    assert got.returncode == 0, got
    assert int((project / "else where" / "model.pt").read_text()) >= early["epoch"]
    assert (project / "else where" / "code" / "condorctl" / "job" / "checkpoint.py").is_file()
    assert "has no nothing.pt" in one_error_line(condorctl("fetch", job, "model.pt", "nothing.pt"))
    # What there is came, whole.
    assert int((folder / "model.pt").read_text()) >= early["epoch"]
    for outside in ("../x", "/etc/passwd", ".."):
        assert "inside the job's own folder" in one_error_line(condorctl("fetch", job, outside))

    with sqlite3.connect(os.environ["CONDORCTL_LEDGER"]) as ledger:
        rows = ledger.execute("select path, bytes from fetched order by id").fetchall()
    assert ("model.pt" in dict(rows)) and len(rows) >= 5

    condorctl("pool", "run", "condor_rm", later["dag"].split("#")[1])
    gone = wait(name, done)
    assert (gone["state"], gone["stages"]["train"]["state"]) == ("removed", "removed")
    assert "it was removed" in condorctl("fetch", job).stderr


def test_logs_come_by_condor_tail_where_ssh_is_not_allowed(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str],
    configure: Configure, project: Path,
) -> None:  # fmt: skip
    configure("ENABLE_SSH_TO_JOB = false\n")
    name = submit(
        f"stages: {{one: {{command: [sh, -c, 'echo out; echo err >&2; sleep 300'], {SMALL}}}}}"
    )
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "running")
    job = view["stages"]["one"]["job"]
    wait(name, lambda _: condorctl("fetch", job).returncode == 0)
    cluster = job.split(".")[0]
    assert (project / "fetched" / job / f"{cluster}.out").read_text() == "out\n"
    assert (project / "fetched" / job / f"{cluster}.err").read_text() == "err\n"
    assert "cannot be reached" in one_error_line(condorctl("fetch", job, "x.pt"))
    condor("condor_rm", view["dag"].split("#")[1])


def test_a_held_job_says_why_and_does_not_keep_one_waiting(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str], project: Path
) -> None:
    name = submit(f"stages: {{one: {{command: {until(project / 'go')}, {SMALL}}}}}")
    job = wait(name, lambda view: bool(view["stages"]["one"]["job"]))["stages"]["one"]["job"]
    condor("condor_hold", "-reason", "wanted to look", job)
    answer = condorctl("follow", name)
    assert answer.returncode == 1
    assert "is held: held by its owner" in answer.stderr
    assert "wanted to look" in answer.stderr
    fetched = condorctl("fetch", job)
    assert (fetched.returncode, "events.log" in fetched.stdout) == (0, True)
    assert "it is held" in fetched.stderr
    condor("condor_release", job)
    (project / "go").touch()
    assert condorctl("follow", name).returncode == 0


def test_an_idle_job_is_told_from_a_failed_one(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str]
) -> None:
    name = submit(f"stages: {{one: {{command: ['true'], {SMALL}, request_cpus: 500}}}}")
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "idle")
    assert "it has not started" in condorctl("fetch", view["stages"]["one"]["job"]).stderr
    dag = condorctl("fetch", view["dag"])
    assert "test.dag.dagman.out" in dag.stdout
    condor("condor_rm", view["dag"].split("#")[1])


def test_an_evicted_job_keeps_its_id_and_starts_again(
    submit: Submit, wait: Wait, condor: Callable[..., str], project: Path
) -> None:
    name = submit(f"stages: {{one: {{command: {until(project / 'go')}, {SMALL}}}}}")
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "running")
    job = view["stages"]["one"]["job"]
    condor("condor_vacate_job", "-fast", job)
    wait(name, lambda view: view["stages"]["one"]["starts"] == 2)
    (project / "go").touch()
    one = wait(name, done)["stages"]["one"]
    assert (one["state"], one["job"], one["starts"], one["attempt"]) == ("done", job, 2, 1)


def test_an_evicted_evaluation_goes_on_from_its_record(
    submit: Submit, wait: Wait, condor: Callable[..., str], project: Path
) -> None:
    (project / "count.py").write_text(
        "import pathlib, time\n"
        "from condorctl import job\n"
        "record = pathlib.Path('record.txt')\n"
        "begun = len(record.read_text())\n"
        "print('begins at', begun, flush=True)\n"
        "for count in range(begun + 1, 13):\n"
        "    record.write_text(count * '.')\n"
        "    job.progress(epoch=count, epochs=12)\n"
        "    time.sleep(1)\n"
    )
    name = submit(
        "stages: {one: {template: evaluate.sub.j2, command: [python, count.py], "
        f"inputs: [count.py], outputs: [record.txt], {SMALL}}}}}"
    )
    view = wait(name, lambda view: (view["stages"]["one"]["epoch"] or 0) >= 4)
    condor("condor_vacate_job", view["stages"]["one"]["job"])
    assert wait(name, done)["stages"]["one"]["starts"] == 2
    folder = project / "exp" / "runs" / name / "one"
    begun = [int(word) for word in next(folder.glob("*.out")).read_text().split()[2::3]]
    assert begun[-1] >= 4
    assert (folder / "record.txt").read_text() == 12 * "."


def test_what_is_wrong_is_said_before_anything_is_written(
    pool: Path, condorctl: Condorctl, project: Path
) -> None:
    spec = project / "jobs" / "bad.yaml"
    good = f"stages: {{one: {{command: ['true'], {SMALL}}}}}"
    (project / "templates").mkdir()
    (project / "templates" / "bad.sub.j2").write_text("include command : touch ran\nqueue\n")
    for text, words, expected in [
        (good.replace("command", "comand"), [], "unknown key"),
        (good, ["--set", "x=1"], "no such parameter"),
        (good, ["--set", "x"], "KEY=VALUE"),
        (good[:-2] + ", template: bad.sub.j2}}", [], "reads or runs something"),
        (good[:-2] + ", inputs: [none.csv]}}", [], "neither a file here"),
        (good[:-2] + ", request_memory: 1 XB}}", [], "request_memory"),
    ]:
        spec.write_text(text)
        assert expected in one_error_line(condorctl("submit", "bad", *words))
    known = one_error_line(condorctl("submit", "nothing")).partition("there is ")[2].split(", ")
    assert {"bad", "pipeline"} <= set(known)
    assert not (project / "ran").exists()
    assert list((project / "exp").rglob("*")) in ([], [project / "exp" / "runs"])
    assert "no run in the ledger" in one_error_line(condorctl("status"))


def test_without_a_pool_nothing_is_written(
    condorctl: Condorctl, project: Path, tmp_path: Path
) -> None:
    (project / "jobs" / "ok.yaml").write_text(f"stages: {{one: {{command: ['true'], {SMALL}}}}}")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "none")}
    environment.pop("CONDOR_CONFIG", None)
    answer = subprocess.run(
        [sys.executable, "-m", "condorctl", "submit", "ok"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "condorctl pool up" in one_error_line(answer)
    assert not (project / "exp").exists()


def test_unknown_jobs_and_runs_are_one_line(pool: Path, condorctl: Condorctl) -> None:
    assert "no job 99999.0" in one_error_line(condorctl("fetch", "99999.0"))
    assert "no run in the ledger" in one_error_line(condorctl("fetch", "train"))
    assert "no run 'x' in the ledger" in one_error_line(condorctl("status", "x"))
    assert "no run 'x' in the ledger" in one_error_line(condorctl("results", "x"))


def test_two_submissions_at_once_are_two_runs(
    pool: Path, condorctl: Condorctl, project: Path, wait: Wait
) -> None:
    (project / "jobs" / "test.yaml").write_text(f"stages: {{one: {{command: ['true'], {SMALL}}}}}")
    command = [sys.executable, "-m", "condorctl", "submit", "test", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = {json.loads(process.communicate(timeout=180)[0])["run"] for process in both}
    assert names == {"test-1", "test-2"}
    for name in names:
        assert wait(name, done)["state"] == "done"
