"""The commands as functions: the same names, the same parameters, plain data back.

    from condorctl import api

    run = api.submit("pipeline", {"seed": "1"})["run"]
    api.follow(run)
    print(api.results([run])["tables"])

Each returns what its command prints with ``--json``. What goes wrong raises
`condorctl.errors.UserError`, one line for a human. Call them from the main thread: the first call
settles which pool this process talks to (`pool.activate`).

Modules are imported inside: `condorctl --help` must not wait for SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condorctl.errors import UserError

if TYPE_CHECKING:
    from condorctl.ledger import Ledger

Json = dict[str, Any]
# Called with what is going on, how much of it is done, and how much there is (0: not known).
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def open_ledger() -> Ledger:
    """The user's ledger, after this process has found its pool, if there is one."""
    from condorctl import paths, pool
    from condorctl.ledger import Ledger

    # As root this changes who the process is, which only its first thread may do. What needs a
    # pool says so itself: a finished run can be looked at without one.
    with contextlib.suppress(UserError):
        pool.expect()
        pool.activate()
    return Ledger(paths.ledger())


def describe(ledger: Ledger, run: str | None) -> Json:
    """A run as `status` returns it, from the ledger as it is."""
    from condorctl.ledger import find
    from condorctl.view import status as statuses

    with ledger.session() as session:
        return statuses.describe(find.run(session, run))


# --- specs and sites ---


def init(folder: Path | None = None) -> Json:
    """Write a small pipeline that works into a folder, the current one by default.

    Returns `files`, what it wrote.
    """
    from condorctl.spec import starter

    return {"files": [str(path) for path in starter.init(folder or Path())]}


def lint(
    pipelines: Sequence[str] = (), set: Mapping[str, str] | None = None, site: str | None = None
) -> Json:
    """All that is wrong with pipelines, else with all in jobs/; needs no pool.

    Returns `pipelines` by their files, each a list of problems: `file`, `line`, `key`, `message`
    (None where a problem has none), and `text`, all of it in one line.
    """
    from condorctl.spec import lint as linting

    found = linting.lint(list(pipelines), set or {}, site)
    return {"pipelines": {file: list(map(linting.as_json, ps)) for file, ps in found.items()}}


def render(
    pipeline: str, to: Path, set: Mapping[str, str] | None = None, site: str | None = None
) -> Json:
    """Write the submit files and the DAG that `submit` would; submits nothing, needs no pool.

    Returns the `dag`, and the `files` of the folder `to`, which must be new or empty.
    """
    from condorctl.submit import dry_run

    return dry_run.write(pipeline, to, set or {}, site)


def schema(site: bool = False) -> Json:
    """The JSON Schema of a pipeline's spec, or of a site's profile."""
    from condorctl.spec import schema as schemas

    return schemas.site() if site else schemas.spec()


def site_list() -> Json:
    """The profiles of sites that there are: `sites`, with `name`, `file` and `description`.

    A profile that cannot be read has its `problem` instead of a description.
    """
    from condorctl.spec import site as profiles

    return profiles.listing()


def site_show(name: str) -> Json:
    """A site's profile: its keys as they are read, and the `file` that it is in.

    `learnt` is what `site_test` has learnt of it, None without.
    """
    from condorctl.spec import site as profiles

    found = profiles.load(name, "site show").model_dump(exclude_unset=True)
    return {**found, "learnt": profiles.learnt(name)}


def site_test(name: str | None = None, timeout: float = 300, progress: Progress = silent) -> Json:
    """Try a site with tiny jobs, for at most `timeout` seconds (`explain.trial`).

    Returns `site`, the `file` where what was learnt is kept, `time`, `schedd`, `version`, `ok`, and
    `checks` as `doctor` has them.
    """
    from condorctl.explain import trial

    return trial.test(name, timeout, progress)


def venv_pack(
    venv: Path | None = None, output: Path | None = None, progress: Progress = silent
) -> Json:
    """Pack a virtual environment, else `.venv`, into one file; as `submit` does for a `venv`.

    Returns `venv`, `file`, `bytes`, `sha256`, `python` (the minor version that the nodes need) and
    `packed`, whether it was not in the cache already.
    """
    from condorctl.submit import venvs

    return venvs.pack(venv or Path(".venv"), output, lambda what: progress(what, 0, 0))


# --- submitting ---


def submit(
    pipeline: str,
    set: Mapping[str, str] | None = None,
    site: str | None = None,
    start: Sequence[str] = (),
    reuse: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Json:
    """Submit a pipeline as a DAG, to a site by its profile; return the run as `status` does.

    `pipeline` may also be a file of one's own, a DAG or a submit file: it is submitted as
    HTCondor's own tools do it, and none of the other parameters are for it (`adopt.submit`).

    Stages that have not changed since they were done are not run again, unless `force`. With
    `start` (``--from``), names or globs, and `reuse`, a run: these stages and all after them run,
    the others come from that run. Each stage has its `why` beside `reused_from`; `remarks` are
    lines for a human.
    """
    from condorctl.steer import adopt as adoption
    from condorctl.submit import submission
    from condorctl.submit.reuse import Wish

    if file := adoption.foreign_file(pipeline):
        if set or site or start or reuse or force:
            raise UserError(
                f"{pipeline}: --set, --site, --from, --reuse and --force are for pipelines; "
                "HTCondor submits this file as it is"
            )
        ledger = open_ledger()
        return {**describe(ledger, adoption.submit(ledger, file)), "remarks": []}
    if force and (start or reuse):
        raise UserError("--force runs every stage: leave out --from and --reuse")
    ledger = open_ledger()
    wish = Wish(start, reuse, force)
    done = submission.submit(
        ledger, pipeline, set or {}, site, wish, lambda what: progress(what, 0, 0)
    )
    view = describe(ledger, done.run)
    for stage in view["stages"]:
        stage["why"] = done.why[stage["stage"]]
    return {**view, "remarks": done.remarks}


def adopt(what: str, name: str | None = None) -> Json:
    """Enter HTCondor work of one's own that exists into the ledger; return the run as `status`.

    `what` is a cluster, queued or in the history (of a DAGMan job: the whole DAG), a job, or the
    file of a DAG that has run here. `name` is that of the run, else one is made.
    """
    from condorctl.steer import adopt as adoption

    ledger = open_ledger()
    return describe(ledger, adoption.adopt(ledger, what, name))


# --- runs that go on, and end ---


def resume(run: str | None = None) -> Json:
    """Go on with a run that failed or was removed; the stages that are done are kept.

    Returns `run`, `dag` (the new DAGMan's cluster id), `rescue`, `kept` and `left`.
    """
    from condorctl.steer import resume as resuming

    return resuming.resume(open_ledger(), run)


def cancel(run: str | None = None) -> Json:
    """Remove a run and its jobs from the queue; returns `run`, `state` and the `rescue` file."""
    from condorctl.steer import steering

    return steering.cancel(open_ledger(), run)


def hold(target: str) -> Json:
    """Hold a job, or a run with all its jobs; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.hold(open_ledger(), target)


def release(target: str) -> Json:
    """Release a job, or all of a run; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.release(open_ledger(), target)


def rm(job: str) -> Json:
    """Remove one job, which to its DAG has failed; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.remove(open_ledger(), job)


def clean(
    runs: Sequence[str] = (),
    older_than: float | None = None,
    keep_outputs: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> Json:
    """Remove the files of runs that have ended; the ledger keeps what they were.

    Returns `runs`, each `run`, `folder` and `bytes`, and the `bytes` that this frees in all.
    """
    from condorctl.steer import cleaning

    return cleaning.clean(open_ledger(), runs, older_than, keep_outputs, dry_run, force)


# --- looking ---


def status(
    run: str | None = None, all: bool = False, users: bool = False, limit: int | None = None
) -> Json:
    """A run with its stages and their jobs (`view.status`); `note` says what is not known.

    With `all`, every run of the ledger, the newest `limit` of them (`overview.runs`). With `users`,
    what the schedd has to do now for everybody (`overview.users`).
    """
    from condorctl.ledger import events
    from condorctl.view import follow as following
    from condorctl.view import overview

    ledger = open_ledger()
    if not (all or users):
        return following.look(ledger, run)
    since = time.time()
    unknown = events.sync(ledger)
    with ledger.session() as session:
        if users:
            return overview.users(session)
        found = overview.runs(session, limit, unknown.unreachable, since)
    return {**found, "note": str(unknown) or None}


def follow(run: str | None = None) -> Json:
    """Wait until a run has ended or is stuck; return it as `status` does."""
    from condorctl import terminal
    from condorctl.view import follow as following

    ledger = open_ledger()
    name = describe(ledger, run)["run"]
    return following.follow(ledger, name, terminal.console(), quiet=True)


def checkpoints(run: str | None = None) -> Json:
    """What the stages of a run have left to go on from, and where it is (`view.checkpoints`).

    Returns `run`, and `checkpoints`, each with `stage`, `job`, `path`, `epoch`, `number`, `bytes`,
    `sha256`, `places`, and whether it is the `newest` of its stage.
    """
    from condorctl.view import checkpoints as kept

    return kept.load(open_ledger(), run)


def cost(runs: Sequence[str] = (), all: bool = False) -> Json:
    """CPU- and GPU-hours of runs, the latest one if none is named: useful, repeated, wasted.

    Returns `runs` (with their `stages`, unless `all` of the ledger's runs are wanted), `users` by
    owner, and the `total`; see `view.cost` and `overview.costs`.
    """
    from condorctl.ledger import events
    from condorctl.view import overview

    ledger = open_ledger()
    since = time.time()
    unknown = events.sync(ledger)
    with ledger.session() as session:
        found = overview.costs(session, None if all else runs, unknown.unreachable, since)
    return {**found, "note": str(unknown) or None}


def results(runs: Sequence[str] = (), source: Path | None = None, metrics: bool = False) -> Json:
    """The final figures of runs, from the ledger or from a folder that `results --save` wrote.

    With `metrics`, those of every epoch, of jobs that run, too (`view.metrics`).
    """
    from condorctl.view import metrics as epochs
    from condorctl.view import results as rows

    if metrics:
        return epochs.as_json(epochs.load(open_ledger(), runs))
    return rows.as_json(rows.load(open_ledger, runs, source))


def notify(
    run: str | None = None,
    dag_status: int | None = None,
    stage: str | None = None,
    test: bool = False,
) -> Json:
    """Send a message about a run to the addresses in the user's notify.conf.

    Of a run that has ended: with `dag_status`, DAGMan's word on it, if it is just about to. Of a
    held job: with its `stage`. With `test`, of nothing. Returns `event`, `title` and `sent`, the
    number of addresses.
    """
    from condorctl.steer import notify as messages
    from condorctl.view import results as rows
    from condorctl.view import tables

    if test:
        return messages.test()
    view = status(run)
    state = {None: view["state"], 0: "done"}.get(dag_status, "failed")
    found = rows.load(open_ledger, [view["run"]], None)
    figures = tables.as_markdown(found, every=False) if found.records else ""
    return messages.send(view, "held" if stage else state, figures)


def show(run: str | None = None) -> Json:
    """Where a run comes from, and what its stages left (`view.show`, `provenance`)."""
    from condorctl.ledger import events
    from condorctl.view import show as provenance

    ledger = open_ledger()
    events.sync(ledger)
    with ledger.session() as session:
        return provenance.show(session, run)


def diff(left: str, right: str, code: bool = False) -> Json:
    """What tells two runs apart (`compare.diff`); with `code`, the unified diff of their code."""
    from condorctl.ledger import events
    from condorctl.view import compare

    ledger = open_ledger()
    events.sync(ledger)
    with ledger.session() as session:
        return compare.diff(session, left, right, code)


def web(
    run: str | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    export: Path | None = None,
    ready: Callable[[str], None] = print,
) -> Json:
    """Serve the page about runs until SIGINT or SIGTERM; `ready` is called with its address.

    It begins with `run`, else with all of them. With `export` the page of one run is written into
    that file instead. Returns `run`, and the `file` that was written, or null.
    """
    ledger = open_ledger()
    if export:
        from condorctl.web import page, views

        seen = views.Views(ledger).everything(run)
        export.write_text(page.export(views.encoded(seen)), encoding="utf-8")
        return {"run": seen["run"]["run"], "file": str(export)}
    run = describe(ledger, run)["run"] if run else None
    try:
        from condorctl.web import server
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'condorctl[web]'") from None
    server.serve(ledger, run, host, port, ready)
    return {"run": run, "file": None}


# --- the ledger ---


def ledger_rebuild(folders: Sequence[Path] = (), progress: Progress = silent) -> Json:
    """Enter runs that the ledger does not have, from what lies in their folders.

    Without `folders`, from exp/runs and from what is kept beside the ledger. Returns `ledger` and
    the names of the runs that were `added`, `known` already, and `kept` (a run.json was written for
    them); `problems` name what could not be read, `remarks` what is missing (`ledger.rebuild`).
    """
    from condorctl.ledger import events, rebuild

    ledger = open_ledger()
    found = rebuild.rebuild(ledger, folders, progress)
    events.sync(ledger)
    return {"ledger": ledger.name, **dataclasses.asdict(found)}


def ledger_check() -> Json:
    """Compare the ledger with the queue and the history of the schedd, and with the runs' folders.

    Returns `ok`, `differences` (kind, run, job, text, mend), `checked` (the number of runs and
    jobs), `forgotten` (jobs that the history does not reach back to) and `remarks`.
    """
    from condorctl.ledger import check

    return check.check(open_ledger())


# --- what is wrong ---


def explain(what: str | None = None) -> Json:
    """Why a job waits, is held or failed: cause, mend, evidence (`explain.explanation`).

    Of a run (the latest one without `what`), each of its `jobs` that needs its user.
    """
    from condorctl.explain import explanation as explanations

    return explanations.explain(open_ledger(), what)


def doctor(job: bool = False, timeout: float = 120, progress: Progress = silent) -> Json:
    """What works here and what does not: `ok`, and `checks` (check, state, what, mend).

    With `job`, a tiny job that tries a slot for at most `timeout` seconds.
    """
    from condorctl.explain import doctor as findings

    return findings.examine(progress, timeout if job else None)


# --- files ---


def fetch(
    job: str,
    path: Sequence[str] = (),
    to: Path | None = None,
    follow: bool = False,
    timeout: float | None = None,
    progress: Progress = silent,
) -> Json:
    """Bring files back from a job: its output, errors and event log, or the paths you name.

    Of a run, what its finished stages have written. Returns `files` (`files.fetching`), `remarks`
    on what a human should know of them, and `problems` where several jobs were meant and not all
    had what was wanted.
    """
    from condorctl.files import fetching
    from condorctl.ledger import events

    ledger = open_ledger()
    events.sync(ledger)
    brought = fetching.fetch(ledger, job, path, to, progress, timeout, follow)
    return {"job": job, **dataclasses.asdict(brought)}


def logs(job: str, err: bool = False, events: bool = False, lines: int | None = None) -> Json:
    """What a job has said so far: its output, its errors, or HTCondor's events in words.

    Returns `jobs`, one for each that is meant, with `job`, `id`, `state` and `text`, of which only
    the last `lines` lines if so many are named. Bytes that are no UTF-8 become replacement signs.
    """
    from condorctl.files import logs as said

    what = said.choose(err, events)
    found = []
    for target, chunks in said.read(open_ledger(), job, what, lines):
        text = b"".join(chunks).decode(errors="replace")
        found.append({"job": target.number, "id": target.id, "state": target.state, "text": text})
    return {"jobs": found}


def ssh(job: str, command: Sequence[str], timeout: float = 60.0) -> Json:
    """Run a command beside a running job; returns its `output` and `exit_code`.

    A single word is a line for the shell there. `timeout` limits how long the job may be starting.
    """
    from condorctl.files import session

    number = session.running(open_ledger(), job)
    output: list[bytes] = []
    code = session.run(number, command, output.append, timeout)
    return {"job": number, "exit_code": code, "output": b"".join(output).decode(errors="replace")}


def sftp(job: str, command: Sequence[str], timeout: float = 60.0) -> Json:
    """Run sftp's commands in a running job's sandbox, until one fails.

    Returns `job`, `exit_code` and `output`. `timeout` limits how long the job may be starting.
    """
    from condorctl.files import session

    number = session.running(open_ledger(), job)
    code, output = session.sftp(number, command, timeout, quiet=True)
    return {"job": number, "exit_code": code, "output": output}


# --- images ---


def image_build(
    tag: str | None = None,
    file: Path | None = None,
    arg: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Build an image from a Dockerfile: `file`, else the project's, else the shipped one.

    `arg` are the Dockerfile's arguments, `options` further words of the engine's own build; `tell`
    gets each line that it says. Returns the record that is kept in exp/images.json: `tag`, `id`,
    `image` (None until it is pushed), `engine`, `dockerfile` (its SHA-256), `args`, `time`.
    """
    from condorctl.images import build

    return dataclasses.asdict(build.build(tag, file, arg or {}, options, engine, tell))


def image_push(
    tag: str | None = None,
    to: str | None = None,
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Push an image, else the one built last, to a registry.

    Returns its record as `image_build` does; `image` is NAME@sha256:DIGEST, which stages that have
    no image of their own take from then on.
    """
    from condorctl.images import build

    return dataclasses.asdict(build.push(tag, to, engine, tell))


def image_check(
    image: str | None = None,
    pipeline: Sequence[str] = (),
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Start an image as a job would be, and import what the stages of pipelines import.

    Returns `image`, `id`, `engine` and `findings`: `name`, `state` (ok, warning, problem), `text`
    and `mend` (None where nothing needs one).
    """
    from condorctl.images import check

    return check.check(image, pipeline, engine, tell)


# --- the pool ---


def pool_up(cpus: int | None = None, progress: Progress = silent) -> Json:
    """Use the pool that is there; else fetch HTCondor and start a personal one, without root."""
    from condorctl import pool

    return dataclasses.asdict(pool.up(cpus, progress))


def pool_down() -> Json:
    """Stop the personal pool; leaves no process."""
    from condorctl import pool

    return dataclasses.asdict(pool.down())


def pool_status() -> Json:
    """Which pool there is and what it does; its `state` is "down" when none answers."""
    from condorctl import pool

    return dataclasses.asdict(pool.status())
