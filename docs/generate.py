"""Writes docs/reference.md and docs/pipeline.schema.json from the code.

python docs/generate.py
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from condorctl import api
from condorctl.spec import schema

PAGE = Path(__file__).with_name("reference.md")
SCHEMA = Path(__file__).with_name("pipeline.schema.json")

Json = dict[str, Any]

_HEAD = """\
# Reference

Made from the code by `make docs`. A test fails when it is not up to date, or when a command, an
option, a key or a function has no words of its own.
"""


def page() -> str:
    """The whole of docs/reference.md."""
    functions = [_function(name, function) for name, function in api_functions()]
    opening = inspect.cleandoc(api.__doc__ or "")
    keys = [_keys(title, *found) for title, *found in spec_keys()]
    parts = [_HEAD, _commands(), "# Pipelines", *keys, "# `condorctl.api`", opening, *functions]
    return "\n\n".join(parts) + "\n"


def spec_keys() -> Iterator[tuple[str, Json, list[str]]]:
    """The keys of a spec and of a site's profile: title, properties, which must be there."""
    spec, site = schema.spec(), schema.site()
    stage = spec["properties"]["stages"]["additionalProperties"]
    table = _items(spec["properties"]["tables"])
    for title, model in (
        ("A pipeline: `jobs/NAME.yaml`", spec),
        ("A stage: `stages.NAME`, and `defaults` for all of them", stage),
        ("A table: `tables`", table),
        ("Its rows: `tables.rows`", _items(table["properties"]["rows"])),
        ("A site: `sites/NAME.yaml`", site),
    ):
        yield title, model["properties"], model.get("required", [])


def _items(array: Json) -> Json:
    found: Json = array["items"]
    return found


def _keys(title: str, properties: Json, required: list[str]) -> str:
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key, found in properties.items():
        default = "" if found.get("default") in (None, "", {}, []) else f"`{found['default']}`"
        default = "must be there" if key in required else default
        lines.append(f"| `{key}` | {default} | {found['description']} |")
    return "\n".join([f"## {title}", "", *lines])


def api_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """The functions of `condorctl.api` by name."""
    for name in api.__all__:
        if inspect.isfunction(value := getattr(api, name)):
            yield name, value


def _commands() -> str:
    # Typer writes a page for an application itself.
    typer = [sys.executable, "-m", "typer", "condorctl.cli", "utils", "docs", "--name", "condorctl"]
    return subprocess.run(typer, capture_output=True, text=True, check=True).stdout.strip()


def _function(name: str, function: Callable[..., object]) -> str:
    # A default that is a function shows its address, which is never the same.
    signature = re.sub(r"<function (\S+) at \w+>|'", r"\1", str(inspect.signature(function)))
    return f"## `api.{name}`\n\n```python\n{name}{signature}\n```\n\n{inspect.getdoc(function)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(json.dumps(schema.spec(), indent=2) + "\n", encoding="utf-8")
