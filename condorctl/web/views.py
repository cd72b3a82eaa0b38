"""What the page shows, as JSON: all runs, one run, its curves, the output of its jobs."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from sqlalchemy.orm import Session

from condorctl.ledger import Ledger, Run, events, find
from condorctl.view import cost, metrics, overview, results, status
from condorctl.web import output

Json = dict[str, Any]

# However many look, logs and queue are read this often.
_FRESH_S = 2.0
_MOST_RUNS = 500
_MOST_ROWS = 500
_MOST_POINTS = 200
_MOST_CURVES = 1000
_TAIL_BYTES = 64 << 10
_EXPORT_TAIL_BYTES = 16 << 10
_EXPORT_BYTES = 8 << 20
# What JavaScript can count to one by one.
_WHOLE = 1 << 53


class Views:
    """Views of a ledger that is brought up to date meanwhile; threads may share one."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reading = threading.Lock()
        self._known: tuple[events.Unknown, float] | None = None
        self._read = float("-inf")

    def runs(self) -> Json:
        """The newest runs, as `overview.runs` has them, and `note`: why not all is known."""
        unknown, since = self._refresh()
        with self._ledger.session() as session:
            found = overview.runs(session, _MOST_RUNS, unknown.unreachable, since)
        doubtful = any(run["unreachable"] for run in found["runs"])
        note = str(unknown) if doubtful else "; ".join(unknown.damaged)
        return {**found, "now": time.time(), "note": note or None}

    def run(self, name: str) -> Json:
        """A run as `status.describe` has it, with `costs` by stage, `results` and `note`."""
        unknown, since = self._refresh()
        with self._ledger.session() as session:
            run = find.run(session, name)
            view = status.describe(run, status.doubt(run, unknown.unreachable, since))
            return {
                **view,
                "costs": _costs(run, view),
                "results": _results(session, name),
                "commit": ((run.provenance or {}).get("git") or {}).get("commit"),
                "now": time.time(),
                "note": "; ".join(unknown.damaged) or None,
            }

    def curves(self, name: str) -> Json:
        """The metrics of a run by epoch: `curves` of stage, process, metric, epochs and values.

        A long curve keeps its first and last epoch and some between; a value may be null.
        """
        with self._ledger.session() as session:
            found = metrics.from_ledger(session, [name])
        points: dict[tuple[str, str, str], list[tuple[int, float | None]]] = {}
        for row in found.rows:
            process = row.job.rpartition(".")[2]
            for metric, value in row.values.items():
                points.setdefault((row.stage, process, metric), []).append((row.epoch, value))
        curves = []
        for (stage, process, metric), curve in list(points.items())[:_MOST_CURVES]:
            kept = _thinned(curve)
            curves.append(
                {
                    "stage": stage, "process": int(process), "metric": metric,
                    "epochs": [epoch for epoch, _ in kept], "values": [value for _, value in kept],
                }
            )  # fmt: skip
        return {"curves": curves, "left_out": max(0, len(points) - _MOST_CURVES)}

    def output(self, job: str, stream: output.Stream) -> Json:
        """The end of what a job printed, as `output.tail` has it."""
        return output.tail(self._ledger, job, stream, _TAIL_BYTES, live=True)

    def everything(self, name: str | None) -> Json:
        """All that there is to see of a run: `run`, `curves`, and `outputs` by job and stream."""
        self._refresh()
        with self._ledger.session() as session:
            run = find.run(session, name)
            name = run.name
            jobs = [job.id_text for stage in run.stages for job in stage.origin.current]
        outputs: Json = {}
        left = _EXPORT_BYTES
        for job in dict.fromkeys(jobs):
            tails = {
                stream: output.tail(self._ledger, job, stream, _EXPORT_TAIL_BYTES, live=False)
                for stream in output.STREAMS
            }
            left -= sum(len(tail["text"]) for tail in tails.values())
            if left > 0:
                outputs[job] = tails
        return {"run": self.run(name), "curves": self.curves(name), "outputs": outputs}

    def _refresh(self) -> tuple[events.Unknown, float]:
        """Read logs and queue, unless that was done just now; why not all is known, since when."""
        # Who comes while another one reads sees what was known before; the first has to wait.
        if self._reading.acquire(blocking=self._known is None):
            try:
                if time.monotonic() - self._read > _FRESH_S:
                    since = time.time()
                    self._known = events.sync(self._ledger), since
                    self._read = time.monotonic()
            finally:
                self._reading.release()
        assert self._known
        return self._known


def encoded(value: Json) -> str:
    """`value` as JSON that every browser reads, in ASCII."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _WHOLE:
        return str(value)
    return value


def _costs(run: Run, view: Json) -> Json:
    until = run.seen if view["unreachable"] else None
    return {stage.name: cost.of_stage(stage, until).as_json() for stage in run.stages}


def _results(session: Session, name: str) -> Json:
    found = results.as_json(results.from_ledger(session, [name]))
    rows = found["results"]
    return {"tables": found["tables"], "rows": rows[:_MOST_ROWS], "total": len(rows)}


def _thinned(curve: list[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    if len(curve) <= _MOST_POINTS:
        return curve
    step = (len(curve) - 1) / (_MOST_POINTS - 1)
    return [curve[round(index * step)] for index in range(_MOST_POINTS)]
