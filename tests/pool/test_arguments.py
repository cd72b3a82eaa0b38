"""Whatever a spec holds arrives byte for byte, and nothing in it runs while it is submitted."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from condorctl.condor import submit_language
from condorctl.errors import UserError
from condorctl.spec import reader
from condorctl.submit import render
from tests.conftest import Condorctl
from tests.pool.conftest import Status

Submit = Callable[..., str]
Wait = Callable[..., Status]

PIECES = [
    "$", "$$", "(", ")", "[", "]", "$(", "$$(", "$$([", "DOLLAR", "dollar", "$(DOLLAR)", "$(X)",
    "$(DOLLAR", "$$(DOLLARDOLLAR)", "$(DOLLARDOLLAR)", "$ENV(HOME)", "$$(Cmd)", "$$([1+1])",
    "$(ClusterId)", "$RANDOM_CHOICE(a,b)", "$F(x)", "$(X:y)", "'", "''", '"', '""', "\\", "\\\\",
    " ", "  ", "\t", "\v", "\f", ",", ";", "|", "&", "%", "%s", "#", "=", "@=end", "@end", "~", "*",
    "`id`", "$HOME", "queue", "include", ":", "-", "--", "\x01", "\x1b[0m", "\x7f", "\x85",
    "\u2028", "\ufeff", "é", "日本", "\U0001f600", "0", "1e3", "true", "null", "{", "}",
    "{{", "}}", "{%",
]  # fmt: skip
word = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=30
)

TELL = """
import json, os, sys
words = [os.fsencode(word).hex() for word in sys.argv[1:]]
variables = {os.fsdecode(k): v.hex() for k, v in os.environb.items()}
json.dump([words, variables], open("told.json", "w"))
"""


def made(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """`count` values and more of Hypothesis's own choosing: a job each would take hours."""
    values: list[Any] = []

    @settings(max_examples=count, database=None, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


def test_hundreds_of_hostile_values_reach_their_programs_byte_for_byte(
    submit: Submit, wait: Wait, project: Path
) -> None:
    values = made(word, 560)
    # A long one, and what YAML's author would have to write with care.
    values[:4] = ["x$(Y)'\"" * 8000, "", " ", "$(DOLLAR)"]
    free = iter(values)
    literal = [next(free) for _ in range(130)]
    defaults = {f"p{n}": next(free) for n in range(120)}
    given_on_the_line = {f"s{n}": next(free) for n in range(80)}
    variables = {f"E{n}": next(free) for n in range(80)}
    # The same axes for each stage of the matrix, other values.
    rows = [{f"w{n}": next(free) for n in range(30)} for _ in range(4)]
    written = {
        "params": {
            **defaults,
            **dict.fromkeys(given_on_the_line, "default"),
            **{f"v{key}": value for key, value in variables.items()},
        },
        "defaults": {
            "inputs": ["tell.py"],
            "outputs": ["told.json"],
            "request_memory": "64 MB",
            "request_disk": "50 MB",
        },
        "stages": {
            "one": {
                "command": [
                    "python", "tell.py", *map(escaped, literal),
                    *(f"{{{{ {key} }}}}" for key in [*defaults, *given_on_the_line]),
                ],
                "environment": {key: f"{{{{ v{key} }}}}" for key in variables},
            },
            "two-{{ row }}": {
                "matrix": {"include": [
                    {"row": n, **{key: escaped(value) for key, value in row.items()}}
                    for n, row in enumerate(rows)
                ]},
                "command": ["python", "tell.py", *(f"{{{{ {key} }}}}" for key in rows[0])],
                "environment": {"E": "{{ w0 }}", "F": "{{ w1 }} {{ w2 }}"},
            },
        },
    }  # fmt: skip
    (project / "tell.py").write_text(TELL)
    text = yaml.safe_dump(written, default_style='"', sort_keys=False)
    sets = [part for k, v in given_on_the_line.items() for part in ("--set", f"{k}={v}")]
    name = submit(text.replace('!!int "', '"'), *sets)
    view = wait(name, lambda view: bool(view["finished"]))
    assert view["state"] == "done", view

    folder = project / "exp" / "runs" / name
    words, environment = json.loads((folder / "one" / "told.json").read_text())
    same(words, [*literal, *defaults.values(), *given_on_the_line.values()])
    same([environment[key] for key in variables], list(variables.values()))
    for number, row in enumerate(rows):
        words, environment = json.loads((folder / f"two-{number}" / "told.json").read_text())
        same(words, list(row.values()))
        same([environment["E"], environment["F"]], [row["w0"], f"{row['w1']} {row['w2']}"])
    assert len(values) >= len(literal) + 120 + 80 + 80 + 4 * 30 == 530


def escaped(text: str) -> str:
    """`text` as a spec's own text that says exactly that: a brace may begin a ``{{ name }}``."""
    return text.replace("{", "{{ '{' }}")


def same(told: list[str], expected: list[str]) -> None:
    wrong = [
        (want, bytes.fromhex(got))
        for want, got in zip(expected, told, strict=True)
        if want.encode() != bytes.fromhex(got)
    ]
    assert wrong == []


PARSE = """
import sys
import htcondor2
parsed = 0
for name in sys.argv[1:]:
    try:
        htcondor2.Submit(open(name, newline="", encoding="utf-8").read())
        parsed += 1
    except Exception:
        pass
print(parsed)
"""


class Canary:
    """A folder of submit files, and a file that appears when one of them runs something."""

    def __init__(self, folder: Path, condorctl: Condorctl) -> None:
        folder.mkdir()
        self.folder, self.condorctl = folder, condorctl
        (folder / "parse.py").write_text(PARSE)
        self.file = folder / "sang"
        # What would run: no slash, since it must fit wherever a value stands.
        (folder / "sing").write_text(f"#!/bin/sh\ntouch {shlex.quote(str(self.file))}\necho\n")
        (folder / "sing").chmod(0o755)
        self.command = str(folder / "sing").replace(" ", "\\ ")

    def parse(self, texts: list[str]) -> int:
        """Have HTCondor read all of them; returns how many it takes for submit files."""
        files = [self.folder / f"{number}.sub" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text.encode())
        parse = [sys.executable, str(self.folder / "parse.py"), *map(str, files)]
        answer = self.condorctl("pool", "run", *parse)
        assert answer.returncode == 0, answer
        for file in files[:10]:
            self.condorctl("pool", "run", "condor_submit", "-dry-run", "-", str(file))
        return int(answer.stdout)


def test_nothing_in_a_spec_or_a_site_runs_while_it_is_submitted(
    pool: Path, condorctl: Condorctl, project: Path, tmp_path: Path
) -> None:
    canary = Canary(tmp_path / "canary", condorctl)
    sing = f"include command : {canary.command}"
    hostile = st.lists(
        st.sampled_from(
            [sing, f"@{sing}", f"{sing}\n", "\n", "\r", "\r\n", "\\", "\\\n", "\v", "\u2028",
             f"queue 1 from {canary.command} |", "queue", "if true", "endif", "@=end", "@end",
             "$(X)", "$ENV(HOME)", '"', "'", ";", " ", "=", "# ", "${", "a"]
        ),
        max_size=6,
    ).map("".join)  # fmt: skip
    places = st.fixed_dictionaries(
        {place: st.just("x") | hostile for place in ("param", "word", "variable", "input")}
        | {p: st.just("TRUE") | hostile for p in ("requirements", "site_requirements")}
        | {p: st.just("+A") | hostile for p in ("key", "site_key")}
        | {p: st.just("x") | hostile for p in ("value", "site_value", "group", "python", "name")}
    )
    rendered: list[str] = []
    refused = 0
    (project / "sites").mkdir()
    for number, at in enumerate(made(places | places.map(mostly_harmless), 300)):
        site = {
            "requirements": at["site_requirements"], "accounting_group": at["group"],
            "python": [at["python"]], "submit": {at["site_key"]: at["site_value"]},
        }  # fmt: skip
        stage = {
            "command": ["python", "{{ p }}", at["word"]], "environment": {"A": at["variable"]},
            "requirements": at["requirements"], "submit": {at["key"]: at["value"]},
            "inputs": [f"http://x/{at['input']}"],
        }  # fmt: skip
        pipeline = {"site": "s", "params": {"p": at["param"]}, "stages": {at["name"]: stage}}
        (project / "sites" / "s.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
        (project / "jobs" / "p.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
        folder = project / f"run{number}"
        folder.mkdir()
        try:
            render.render(reader.load(Path("jobs/p.yaml")), "p-1", folder, ["python3"])
        except UserError:
            refused += 1
        rendered += [f.read_text(encoding="utf-8") for f in folder.glob("*/stage.sub")]
    assert canary.parse(rendered) == len(rendered) > 50
    assert refused > 50
    assert not canary.file.exists()


def mostly_harmless(at: dict[str, str]) -> dict[str, str]:
    """One hostile value among such as pass, since most of them are refused at once."""
    harmless = dict.fromkeys(at, "x") | {"requirements": "TRUE", "site_requirements": "TRUE"}
    harmless |= {"key": "+A", "site_key": "+B"}
    chosen = sorted(at)[len(str(at)) % len(at)]
    return harmless | {chosen: at[chosen]}


def test_no_template_runs_anything_while_it_is_submitted(
    pool: Path, condorctl: Condorctl, tmp_path: Path
) -> None:
    canary = Canary(tmp_path / "canary", condorctl)
    sing = f"include command : {canary.command}\n"
    piece = st.sampled_from(
        [sing, "include", "INCLUDE", "inc", "lude", " ", "command", f": {canary.command}\n", ":",
         f"command : {canary.command}\n", f": {canary.command} |\n", "into x", "@", "use", "\\\n",
         "\\ \n", "\\\n# remark\n", "# remark\\\n", "# remark\n", "if true\n", ":if true\n",
         "endif\n", "x = 1\n", "x = 1\\\n", "x @=end\n", "@end\n", "queue\n", "\r",
         "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\u2028", "\xa0", "\ufeff", "=", "\n",
         "#opt:oldcomment\n"]
    )  # fmt: skip
    texts = [
        f"executable = /bin/true\n{text}\nqueue\n"
        for text in made(st.lists(piece, max_size=7).map("".join), 700)
    ]
    texts += [
        f"executable = /bin/true\n{start}{sing}queue\n"
        for start in ("", " ", "@", "if true\n:", "if true\n@", "\v", "# x\\\n", "x = 1 \\\n")
    ]
    taken = []
    for text in texts:
        try:
            submit_language.check_text(text, "x.sub")
        except UserError:
            continue
        taken.append(text)
    assert canary.parse(taken) > 20
    assert not canary.file.exists()
    # The canary does sing: all those that were refused, without the check.
    canary.parse([text for text in texts if text not in taken])
    assert canary.file.exists()
