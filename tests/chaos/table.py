"""What came of a campaign, for a human."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Json = dict[str, Any]


def by_kind(found: Json) -> list[tuple[str, int, int, float | None]]:
    """Each kind of fault: how often it was injected, its effect seen, the largest loss in s."""
    injected: dict[str, list[Json]] = defaultdict(list)
    for fault in found["faults"]:
        if fault["what"]:
            injected[fault["kind"]].append(fault)
    losses: dict[str, list[float]] = defaultdict(list)
    for stage in found["stages"]:
        for loss in stage["losses"]:
            losses[loss["kind"]].append(loss["seconds"])
    return [
        (kind, len(ones), sum(bool(one["effect"]) for one in ones), max(losses[kind], default=None))
        for kind, ones in sorted(injected.items())
    ]


def failures(found: Json) -> list[str]:
    """What does not hold, a line each; none when all does."""
    lines = [f"{run} is {state}" for run, state in found["runs"].items() if state != "done"]
    for stage in found["stages"]:
        for part in ("final", "metrics"):
            if not stage[part]:
                lines.append(f"{stage['run']}/{stage['stage']}: its {part} differs")
    check = found["check"] or {"differences": [{"text": "the ledger could not be checked"}]}
    lines += [f"ledger: {one['text']}" for one in check["differences"]]
    lines += [f"no clear answer: {one}" for one in found["unclear"]]
    for kind, left in found["orphans"].items():
        lines += [f"orphan ({kind}): {one}" for one in left]
    return lines


def text(found: Json) -> str:
    """The table in Markdown, and what does not hold below it."""
    options, stages = found["options"], found["stages"]
    kinds = by_kind(found)
    width = max([len(kind) for kind, *_ in kinds] + [5])
    lines = [
        f"Seed {options['seed']}: {sum(n for _, n, *_ in kinds)} faults in "
        f"{found['faults_s'] / 60:.0f} min, all settled after {found['seconds'] / 60:.0f} min.",
        "",
        f"| {'fault':{width}} | injected | effect seen | largest loss |",
        f"| {'-' * width} | -------: | ----------: | -----------: |",
    ]
    for kind, injected, seen, loss in kinds:
        told = "—" if loss is None else f"{loss:.1f} s"
        lines.append(f"| {kind:{width}} | {injected:8} | {seen:11} | {told:>12} |")
    lines.append("")
    done = sum(state == "done" for state in found["runs"].values())
    steps, restarts = found["steps"], found["restarts"]
    share = 100 * steps["again"] / max(1, steps["done"])
    largest = max((x["seconds"] for one in stages for x in one["losses"]), default=0.0)
    check = found["check"] or {}
    means = ", ".join(f"{what} {n} times" for what, n in sorted(found["means"].items())) or "none"
    orphans = ", ".join(f"{len(left)} {kind}" for kind, left in found["orphans"].items())
    rows = [
        ("runs finished", f"{done} of {len(found['runs'])}"),
        ("finals identical", f"{sum(one['final'] for one in stages)} of {len(stages)} stages"),
        ("metrics identical", f"{sum(one['metrics'] for one in stages)} of {len(stages)} stages"),
        ("work done again", f"{steps['again']} of {steps['done']} steps ({share:.1f} %)"),
        ("started again", f"{restarts['all']} times, {restarts['went_on']} from a checkpoint"),
        ("largest loss", f"{largest:.1f} s, with a checkpoint every {found['interval_s']} s"),
        ("ledger against history", _checked(check)),
        ("orphans left", orphans),
        ("done by the user's automation", means),
    ]
    lines += ["| what | |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in rows]
    if found["without"]:
        lines += ["", f"Not possible here: {', '.join(found['without'])}."]
    bad = failures(found)
    lines += ["", "All of it holds." if not bad else "What does not hold:"]
    lines += [f"- {line}" for line in bad]
    return "\n".join(lines)


def _checked(check: Json) -> str:
    if not check:
        return "not checked"
    checked = check["checked"]
    differences = len(check["differences"])
    return f"{differences} differences in {checked['jobs']} jobs of {checked['runs']} runs"
