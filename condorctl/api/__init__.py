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

from condorctl.api.base import Json, Progress, describe, open_ledger, silent
from condorctl.api.files import fetch, logs, sftp, ssh
from condorctl.api.images import image_build, image_check, image_push
from condorctl.api.ledgers import ledger_check, ledger_rebuild
from condorctl.api.look import checkpoints, cost, diff, follow, notify, results, show, status, web
from condorctl.api.pools import pool_down, pool_status, pool_up
from condorctl.api.runs import adopt, cancel, clean, hold, release, resume, rm, submit
from condorctl.api.specs import (
    init,
    lint,
    render,
    schema,
    site_list,
    site_show,
    site_test,
    venv_clean,
    venv_list,
    venv_pack,
)
from condorctl.api.why import doctor, explain

__all__ = [
    "Json",
    "Progress",
    "adopt",
    "cancel",
    "checkpoints",
    "clean",
    "cost",
    "describe",
    "diff",
    "doctor",
    "explain",
    "fetch",
    "follow",
    "hold",
    "image_build",
    "image_check",
    "image_push",
    "init",
    "ledger_check",
    "ledger_rebuild",
    "lint",
    "logs",
    "notify",
    "open_ledger",
    "pool_down",
    "pool_status",
    "pool_up",
    "release",
    "render",
    "results",
    "resume",
    "rm",
    "schema",
    "sftp",
    "show",
    "silent",
    "site_list",
    "site_show",
    "site_test",
    "ssh",
    "status",
    "submit",
    "venv_clean",
    "venv_list",
    "venv_pack",
    "web",
]
