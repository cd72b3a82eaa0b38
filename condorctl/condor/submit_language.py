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

_UNSAFE_IN_LIST = re.compile(r"[,;=\"'$\x00-\x1f]|^\s|\s$")

# What reads or runs something while the file is parsed; '@' and ':' may stand before it.
_FOREIGN = re.compile(r"[@:\s]*(include|use)\b", re.IGNORECASE)
# Blanks as C's isspace has them: HTCondor ends a line at a line feed and nowhere else.
_BLANKS = " \t\v\f\r"

# A dollar sign that HTCondor's own ``$(DOLLAR)`` would swallow: filled in at the match instead.
_DOLLAR_AT_MATCH = '$$([""$""])'

# The absolute path of a plain one, which tells nothing and runs nothing.
_WHOLE_PATH = re.compile(r"\$Ff\([A-Za-z0-9_./@-]+\)")
# Macros a template's author may use: HTCondor fills them in with numbers and names of its own.
_KNOWN_MACROS = {
    "cluster", "clusterid", "process", "procid", "job", "retry", "dagmanjobid",
    "dollar", "dollardollar",
}  # fmt: skip


class Quoted(str):
    """Text in the form that its place in a submit file wants: not to be checked or quoted again."""


def check_value(text: str, where: str) -> str:
    """Return `text` if a submit file can carry it in one of the quoted forms below.

    Raises UserError for a line break, a NUL byte, and for what is no Unicode text.
    """
    for character, name in {"\n": "a line break", "\r": "a line break", "\0": "a NUL byte"}.items():
        if character in text:
            raise UserError(
                f"{where}: holds {name}, which a submit file cannot carry; "
                "pass such text in an input file"
            )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: is not UTF-8 text")
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


def attribute(value: str | bool | int | float, where: str) -> Quoted:
    """The value of ``+Attribute =``: a number, a truth value, or text as a ClassAd string.

    Text that begins with ``=`` is an expression. Raises UserError for what HTCondor would not read.
    """
    if not isinstance(value, str):
        return plain(str(value).lower() if isinstance(value, bool) else str(value), where)
    if value.startswith("="):
        return expression(value[1:].strip(), where)
    return plain('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"', where)


def further(command: str, value: str | bool | int | float) -> Quoted:
    """A whole line: a `command` that is named by a spec, or an attribute written ``+Name``.

    Raises UserError for a value that it cannot carry.
    """
    if command.startswith("+") or command.lower().startswith("my."):
        return Quoted(f"{command} = {attribute(value, command)}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Quoted(f"{command} = {plain(text, command)}")


def expression(text: str, where: str) -> Quoted:
    """`text` as a ClassAd expression, such as ``requirements`` wants.

    Raises UserError for one that cannot be parsed.
    """
    import classad2

    plain(text, where)
    try:
        classad2.ExprTree(text)
    except (ValueError, classad2.ClassAdException):
        raise UserError(f"{where}: {text!r} is no ClassAd expression") from None
    return Quoted(text)


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


def whole_path(path: str) -> Quoted:
    """A relative path in a list of files, made absolute when the job is submitted.

    HTCondor brings a relative one to the job with all its folders, an absolute one by its last name
    alone. Raises UserError for a path that could not stand there.
    """
    found = Quoted(f"$Ff({path})")
    if not _WHOLE_PATH.fullmatch(found):
        raise UserError(f"{path!r}: HTCondor cannot make this path absolute; rename it")
    return found


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
    if "\0" in text:
        raise UserError(f"{file}: holds a NUL byte")
    queues = requirements = 0
    for number, line in enumerate(text.split("\n"), 1):
        found = _FOREIGN.match(line)
        if found:
            raise UserError(f"{file}:{number}: {found[1]!r} reads or runs something on submission")
    for number, line in _logical_lines(text, file):
        word = re.split(r"[\s=]", line, maxsplit=1)[0].lower()
        if word.startswith("#"):
            continue
        requirements += word == "requirements"
        if requirements > 1:
            raise UserError(
                f"{file}:{number}: 'requirements' stands here twice, and the last would win: "
                "write them in the spec, where they join those of the site"
            )
        if word == "queue":
            queues += 1
            if line.split()[1:] not in ([], ["1"]):
                raise UserError(f"{file}:{number}: a stage is one job: write a bare 'queue'")
        for macro in re.finditer(r"\$(\$?)([A-Za-z_]*)\(([^)]*)\)?", line):
            name = macro[3].strip().lower()
            if macro[0] == _DOLLAR_AT_MATCH or _WHOLE_PATH.fullmatch(macro[0]):
                continue
            if macro[2] or name not in _KNOWN_MACROS:
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
    return Quoted('"' + re.sub(r"(\$\$?)(\(\s*dollar)?", _dollar, text, flags=re.IGNORECASE) + '"')


def _dollar(found: re.Match[str]) -> str:
    dollars, name = found[1], found[2] or ""
    if dollars == "$$":
        return "$$(DOLLARDOLLAR)" + name
    return (_DOLLAR_AT_MATCH if name else "$(DOLLAR)") + name


def _logical_lines(text: str, file: str) -> list[tuple[int, str]]:
    """Lines with their numbers, those that end in a backslash joined with the next.

    Raises UserError where the joint is in a command's name, which would hide what it is.
    """
    lines: list[tuple[int, str]] = []
    pending = ""
    for number, physical in enumerate(text.split("\n"), 1):
        line = physical.strip(_BLANKS)
        if line.endswith("\\") and not (line.startswith("#") and not pending):
            if "=" not in (pending + line):
                raise UserError(f"{file}:{number}: write a command and its '=' on one line")
            pending += line[:-1]
            continue
        lines.append((number, pending + line))
        pending = ""
    if pending:
        raise UserError(f"{file}: ends within a line")
    return lines
