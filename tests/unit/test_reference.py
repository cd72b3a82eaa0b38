"""docs/reference.md is the code's own; the API mirrors the commands; nothing is without words."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from condorctl import api
from condorctl.cli import app

_GENERATE = Path(__file__).parents[2] / "docs" / "generate.py"

# How a command shows what its function returns, and what needs a terminal.
_SHOWING = {"as_json", "as_csv", "as_markdown", "every"}
_MORE = {
    "logs": {"follow"},
    "results": {"save"},
    "resume": {"follow"},
    "status": {"live"},
    "submit": {"follow", "interactive", "command"},
}
# Gives this process away to another program.
_NO_FUNCTION = {"pool_run"}


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command by its function's name: `pool up` is `pool_up`."""

    def walk(group: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, [*words, name])
            else:
                yield "_".join([*words, name]).replace("-", "_"), command

    yield from walk(typer.main.get_command(app), [])


COMMANDS = list(_commands())


def test_the_page_is_up_to_date() -> None:
    generate = runpy.run_path(str(_GENERATE))
    page = generate["PAGE"].read_text(encoding="utf-8")
    assert page == generate["page"](), "run `make docs`"


def test_every_key_of_a_spec_says_what_it_is() -> None:
    for title, properties, _ in runpy.run_path(str(_GENERATE))["spec_keys"]():
        for key, found in properties.items():
            assert found.get("description"), f"{title}: {key}"


@pytest.mark.parametrize("name, command", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_says_what_it_is(name: str, command: Any) -> None:
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name, command", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_has_a_function_with_its_parameters(name: str, command: Any) -> None:
    if name in _NO_FUNCTION:
        return
    function = getattr(api, name, None)
    assert function, f"condorctl.api has no {name}"
    assert inspect.getdoc(function)
    taken = set(inspect.signature(function).parameters)
    for parameter in command.params:
        given = parameter.name.rstrip("_")
        assert given in taken | _SHOWING | _MORE.get(name, set()), f"api.{name} has no {given}"
