"""What tells two runs apart: parameters, code, provenance, stages, figures."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import printable
from condorctl.ledger import Metric, Run, Stage, find
from condorctl.view import results

Json = dict[str, Any]

_MOST_LINES = 20_000
_MOST_FILE = 1_000_000
_WIDTH = 80
_HASH = re.compile(r"[0-9a-f]{40,64}")


def diff(session: Session, left: str, right: str, code: bool = False) -> Json:
    """What differs between the runs called `left` and `right`; all pairs are [left, right].

    `runs`; `params`, `versions`, `packages`, `git` (commit, branch, dirty) and `inputs` (SHA-256)
    by name, where they differ; `code`: files by name, with how they differ ("added", "removed",
    "changed") and, with `code`, the unified `code_diff` (None when a run's files are gone);
    `stages` by name: `in`, and the parts of their fingerprints that `changed`; `metrics` of the
    last epoch and `results`, by stage and name, all of them.
    """
    a, b = find.run(session, left), find.run(session, right)
    one, other = a.provenance, b.provenance
    found: Json = {
        "runs": [a.name, b.name],
        "params": _pairs(a.params, b.params),
        "versions": _pairs(one.get("versions"), other.get("versions")),
        "packages": _pairs(one.get("packages"), other.get("packages")),
        "git": _pairs(_commit(one), _commit(other)),
        "inputs": _pairs(_hashes(one), _hashes(other)),
        "code": _changed_files(_code(one), _code(other)),
        "stages": _stages(a, b),
        "metrics": _both(_metrics(session, a), _metrics(session, b)),
        "results": _both(_results(session, a), _results(session, b)),
    }
    if code:
        found["code_diff"] = _code_diff(a, b, found["code"])
    return found


def _pairs(left: Mapping[str, Any] | None, right: Mapping[str, Any] | None) -> Json:
    left, right = left or {}, right or {}
    names = [*left, *(name for name in right if name not in left)]
    return {n: [left.get(n), right.get(n)] for n in names if left.get(n) != right.get(n)}


def _both(left: Json, right: Json) -> Json:
    names = [*left, *(name for name in right if name not in left)]
    return {name: [left.get(name), right.get(name)] for name in names}


def _commit(origin: Json) -> Json:
    git = origin.get("git") or {}
    return {key: git.get(key) for key in ("commit", "branch", "dirty")}


def _hashes(origin: Json) -> Json:
    return {name: one["sha256"] for name, one in origin.get("inputs", {}).items()}


def _code(origin: Json) -> dict[str, str]:
    return dict(origin.get("code", {}).get("files", {}))


def _changed_files(left: Mapping[str, str], right: Mapping[str, str]) -> dict[str, str]:
    kinds = {}
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            both = name in left and name in right
            kinds[name] = "changed" if both else "added" if name in right else "removed"
    return kinds


def _stages(a: Run, b: Run) -> Json:
    left, right = ({stage.name: stage for stage in run.stages} for run in (a, b))
    found: Json = {}
    for name in [*left, *(name for name in right if name not in left)]:
        if name in left and name in right:
            one, other = left[name].fingerprint, right[name].fingerprint
            changed = [part for part in one if one[part] != other.get(part)]
            states = [_ended(left[name]), _ended(right[name])]
            if changed or states[0] != states[1]:
                found[name] = {"in": [a.name, b.name], "changed": changed, "ended": states}
        else:
            where = a if name in left else b
            found[name] = {"in": [where.name], "changed": [], "ended": []}
    return found


def _ended(stage: Stage) -> str | None:
    current = stage.origin.current
    return current[-1].state if current else None


def _metrics(session: Session, run: Run) -> Json:
    """Of each stage the metrics of the last epoch that its last job told."""
    found: Json = {}
    for stage in run.stages:
        if not stage.origin.current:
            continue
        job = stage.origin.current[-1].id
        rows = session.scalars(select(Metric).where(Metric.job_id == job).order_by(Metric.epoch))
        found.update({f"{stage.name} {row.name}": row.value for row in rows})
    return found


def _results(session: Session, run: Run) -> Json:
    """The figures of each row; its texts name it."""
    found: Json = {}
    for record in results.from_ledger(session, [run.name]).records:
        words = [str(value) for value in record.values.values() if isinstance(value, str)]
        name = " ".join([record.stage, *words])
        for key, value in record.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{name} {key}"] = value
    return found


def _code_diff(a: Run, b: Run, changed: Mapping[str, str]) -> str | None:
    if changed and not all((run.path / "code").is_dir() for run in (a, b)):
        return None
    lines: list[str] = []
    for name in changed:
        lines += _file_diff(a, b, name)
        if len(lines) > _MOST_LINES:
            return "".join([*lines[:_MOST_LINES], f"... more than {_MOST_LINES} lines\n"])
    return "".join(lines)


def _file_diff(a: Run, b: Run, name: str) -> Iterator[str]:
    texts = [_lines(run.path / "code" / name) for run in (a, b)]
    labels = [
        f"{run.name}/{name}" if text else "/dev/null"
        for run, text in zip((a, b), texts, strict=True)
    ]
    if any(text is None for text in texts):
        yield f"{name}: not text, or too large\n"
        return
    for line in difflib.unified_diff(texts[0] or [], texts[1] or [], labels[0], labels[1]):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(file: Path) -> list[str] | None:
    """None when it is no text to compare; none when it is not there."""
    try:
        if file.stat().st_size > _MOST_FILE:
            return None
        return file.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
    except OSError:
        return []


def as_lines(found: Json) -> list[str]:
    """What `diff` found, for a terminal of 80 columns; ends with the code's diff if it is there."""
    left, right = found["runs"]
    lines = [f"{left} -> {right}"]
    titles = {"params": "parameters", "git": "git", "inputs": "inputs", "versions": "versions",
              "packages": "packages"}  # fmt: skip
    for key, title in titles.items():
        lines += section(title, [f"{n}: {_short(a)} -> {_short(b)}" for n, (a, b) in
                                 found[key].items()])  # fmt: skip
    lines += section("code", [f"{name} {how}" for name, how in found["code"].items()])
    lines += section("stages", [_stage_line(name, one) for name, one in found["stages"].items()])
    for key in ("metrics", "results"):
        rows = [(name, _figure(a), _figure(b)) for name, (a, b) in found[key].items()]
        wide = max((len(name) for name, _, _ in rows), default=0)
        lines += section(key, [f"{n:{wide}}  {a:>10}  {b:>10}" for n, a, b in rows], fold=False)
    if len(lines) == 1:
        lines.append("no difference is recorded")
    if "code_diff" in found:
        text = found["code_diff"]
        gone = "the code of one of them was cleaned away: only its hashes can be compared"
        lines += ["", *([gone] if text is None else text.splitlines())]
    return [printable(line) if line else "" for line in lines]


def section(title: str, rows: list[str], fold: bool = True) -> list[str]:
    """`rows` below their title, long ones folded at 80 columns; nothing where there are none."""
    if not rows:
        return []
    inside = {"initial_indent": "  ", "subsequent_indent": "    "}
    folded = [
        line
        for row in rows
        for line in (textwrap.wrap(row, _WIDTH, **inside) if fold else [f"  {row}"])  # type: ignore[arg-type]
    ]
    return ["", title, *folded]


def _stage_line(name: str, one: Json) -> str:
    if len(one["in"]) == 1:
        return f"{name}: only in {one['in'][0]}"
    changed = f"other {', '.join(one['changed'])}" if one["changed"] else ""
    a, b = one["ended"]
    ended = f"{a or 'not run'} -> {b or 'not run'}" if a != b else ""
    return f"{name}: {'; '.join(filter(None, [changed, ended]))}"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if _HASH.fullmatch(text) else text


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
