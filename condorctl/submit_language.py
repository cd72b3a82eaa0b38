"""HTCondor's submit language: what it can carry, how it is quoted, what it must never be given.

The language runs commands while it is parsed (``include command : …``), and ``$(X)``, ``$ENV(X)``
and their kind expand. Values therefore go through `check_value` and one of the quoting functions,
and a rendered file goes through `check_text` before HTCondor sees it. See HTCondor's manual,
"condor_submit", on ``arguments``, ``environment`` and "submit description file macros".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from condorctl.errors import UserError

_MACRO = re.compile(r"\$\$?\(|\$\$?[A-Za-z_]+\(")
_UNSAFE_IN_LIST = re.compile(r"[,;=\"'$\x00-\x1f]|^\s|\s$")

# Macros a template's author may use: HTCondor fills them in with numbers and names of its own.
_KNOWN_MACROS = {
    "cluster", "clusterid", "process", "procid", "job", "retry", "dagmanjobid",
    "dollar", "dollardollar",
}  # fmt: skip


class Quoted(str):
    """Text in the form that its place in a submit file wants: not to be checked or quoted again."""


def check_value(text: str, where: str) -> str:
    """Return `text` if a submit file can carry it unchanged.

    Raises UserError for a line break or NUL, and for anything shaped like a macro.
    """
    for character, name in {"\n": "a line break", "\r": "a line break", "\0": "a NUL byte"}.items():
        if character in text:
            raise UserError(f"{where}: holds {name}, which a submit file cannot carry")
    found = _MACRO.search(text)
    if found:
        raise UserError(
            f"{where}: holds {found[0] + '…)'!r}, which HTCondor would expand; "
            "pass such text in an input file"
        )
    return text


def plain(text: str, where: str) -> Quoted:
    """`text` as a value that needs no quoting, such as a number or the path of an executable.

    Raises UserError for a line break, a NUL byte or a dollar sign.
    """
    check_value(text, where)
    if "$" in text:
        raise UserError(f"{where}: {text!r} holds '$', which HTCondor would expand here")
    return Quoted(text)


def arguments(words: Sequence[str]) -> Quoted:
    """The value of ``arguments =`` that gives a program exactly these arguments."""
    return _list(_quoted(word) for word in words)


def environment(variables: Mapping[str, str]) -> Quoted:
    """The value of ``environment =`` that sets exactly these variables; names are plain words."""
    return _list(f"{name}={_quoted(value)}" for name, value in variables.items())


def file_list(paths: Sequence[str]) -> Quoted:
    """The value of a comma-separated list of files.

    Raises UserError for a name that HTCondor's lists cannot carry.
    """
    for path in paths:
        found = _UNSAFE_IN_LIST.search(path)
        if found:
            raise UserError(
                f"file {path!r}: HTCondor cannot transfer a name with {found[0]!r}; rename it"
            )
    return Quoted(", ".join(paths))


def remaps(pairs: Mapping[str, str]) -> Quoted:
    """The value of ``transfer_output_remaps``: file in the sandbox → file on the submit machine.

    Raises UserError for a name that HTCondor's lists cannot carry.
    """
    file_list([*pairs, *pairs.values()])
    return Quoted('"' + "; ".join(f"{name} = {to}" for name, to in pairs.items()) + '"')


def check_text(text: str, file: str) -> None:
    """Refuse a rendered submit file that would run a command or expand a foreign macro.

    Raises UserError with the file and the line.
    """
    queues = 0
    for number, line in _logical_lines(text):
        word = line.split(None, 1)[0].lower().rstrip(":") if line.split() else ""
        if word.startswith("#"):
            continue
        if word in {"include", "use"} or re.match(r"(include|use)\b", word):
            raise UserError(f"{file}:{number}: {word!r} reads or runs something while submitting")
        if word == "queue":
            queues += 1
            if line.split()[1:] not in ([], ["1"]):
                raise UserError(f"{file}:{number}: a stage is one job: write a bare 'queue'")
        for macro in re.finditer(r"\$(\$?)([A-Za-z_]*)\(([^)]*)\)?", line):
            known = not macro[2] and macro[3].strip().lower() in _KNOWN_MACROS
            if not known:
                raise UserError(f"{file}:{number}: HTCondor would expand {macro[0]!r}")
    if queues != 1:
        raise UserError(f"{file}: must have exactly one 'queue', has {queues}")


def _quoted(word: str) -> str:
    # Harmless words stay as they are, so that a submit file can be read.
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", word):
        return word
    return "'" + word.replace("'", "''") + "'"


def _list(words: Iterable[str]) -> Quoted:
    text = " ".join(words).replace('"', '""')
    names = {"$": "$(DOLLAR)", "$$": "$$(DOLLARDOLLAR)"}
    return Quoted('"' + re.sub(r"\$\$?", lambda dollars: names[dollars[0]], text) + '"')


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, those that end in a backslash joined with the next."""
    lines: list[tuple[int, str]] = []
    pending = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith("\\"):
            pending += line[:-1]
            continue
        lines.append((number, (pending + line).strip()))
        pending = ""
    if pending:
        lines.append((len(text.splitlines()), pending.strip()))
    return lines
