"""What is wrong, and what mends it."""

from __future__ import annotations

from condorctl.api.base import Json, Progress, open_ledger, silent


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
