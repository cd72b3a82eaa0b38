"""What ledger, logs and queue know of a run and its jobs, for those who explain one of them."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from condorctl import units
from condorctl.condor import cluster
from condorctl.explain import failures, matchmaking, waiting
from condorctl.ledger import Job, Run, Stage, stage_states

Json = dict[str, Any]


class Queue:
    """What schedd and collector know of some jobs now."""

    def __init__(self, asked: set[tuple[str, int, int]], unreachable: str | None) -> None:
        self.unreachable = unreachable
        self.schedd = ""
        self.ads: dict[tuple[str, int, int], Json] = {}
        self.waiting: dict[tuple[str, int, int], waiting.Waiting] = {}
        if not asked or unreachable:
            return
        try:
            self.schedd = cluster.schedd_name()
            here = {key for key in asked if key[0] == self.schedd}
            for ad in matchmaking.jobs({number for _, number, _ in here}):
                self.ads[self.schedd, ad["ClusterId"], ad["ProcId"]] = ad
            idle = {key: ad for key, ad in self.ads.items() if waiting.is_idle(ad) and key in here}
            if idle:
                pool = waiting.Pool()
                self.waiting = {key: pool.why(ad) for key, ad in idle.items()}
        except cluster.Unreachable as error:
            self.unreachable = str(error)


class Known:
    """One run and what its jobs, logs and queue tell."""

    def __init__(self, run: Run, note: str | None, queue: Queue) -> None:
        self.run, self.queue = run, queue
        self.unreachable = queue.unreachable
        note = note or queue.unreachable
        self.note = None if run.finished else note
        if self.note and run.seen:
            self.note += f"; known as of {units.age(time.time() - run.seen)} ago"
        elif self.note:
            self.note += "; known from the logs alone"
        self.states = stage_states.of(run)

    def row(self, stage: Stage | None, job: Job | None, state: str) -> Json:
        """What every explanation says of what it explains; its cause and mend are still empty."""
        return {
            "job": job.number if job else None,
            "id": job.id_text if job else None,
            "run": self.run.name,
            "stage": stage.name if stage else None,
            "state": state,
            "cause": "",
            "mend": "",
            "evidence": [],
            "tried": {"times": job.attempt, "most": stage.retries + 1} if job and stage else None,
            "analysis": None,
            "note": self.note,
        }

    @cached_property
    def words(self) -> failures.Words:
        """What the user calls things."""
        run = self.run
        if run.kind == "pipeline":
            again = f"`condorctl submit {run.pipeline}`"
            return failures.Words("the stage's `inputs`", again, f"`condorctl resume {run.name}`")
        resume = f"`condorctl resume {run.name}`" if run.kind == "dag" else "submit it again"
        return failures.Words("`transfer_input_files`", "submit again", resume)

    def ad(self, job: Job) -> Json | None:
        """What the queue knows of the job; None when it is not there, or nobody could be asked."""
        return self.queue.ads.get((job.schedd, job.cluster, job.proc))
