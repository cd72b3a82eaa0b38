"""The published schema: up to date, and of one mind with the tool about right and wrong specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from condorctl.errors import UserError
from condorctl.spec import reader, schema, site, yaml_text
from condorctl.spec.pipeline import Stage
from tests.conftest import Condorctl
from tests.unit.test_site import GOOD as GOOD_SITE
from tests.unit.test_site import WRONG as WRONG_SITES

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "pipeline.schema.json"
SPECS = [
    *(ROOT / "jobs").glob("*.yaml"),
    *(ROOT / "condorctl/spec/starter_files/jobs").glob("*.yaml"),
]


def wrong(text: str, project: Path, schema: dict[str, Any]) -> list[str]:
    """What the schema finds in the YAML `text`, as the tool reads it."""
    file = project / "x.yaml"
    file.write_text(text, encoding="utf-8")
    data, _ = yaml_text.read(file)
    return [error.message for error in Draft202012Validator(schema).iter_errors(data)]


def test_the_published_schema_is_that_of_the_code(condorctl: Condorctl) -> None:
    """Mend with `condorctl schema > docs/pipeline.schema.json`."""
    assert PUBLISHED.read_text(encoding="utf-8") == condorctl("schema").stdout
    Draft202012Validator.check_schema(schema.spec())
    Draft202012Validator.check_schema(json.loads(condorctl("schema", "--site").stdout))


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_every_shipped_spec_fits(file: Path, project: Path) -> None:
    assert wrong(file.read_text(encoding="utf-8"), project, schema.spec()) == []


def test_every_key_has_words_of_its_own() -> None:
    properties = schema.spec()["properties"]
    stage = properties["stages"]["additionalProperties"]["properties"]
    assert stage.keys() == set(Stage.model_fields) - {"name"} | {"matrix"}
    for keys in (properties, stage, schema.site()["properties"]):
        assert [name for name, key in keys.items() if not key.get("description")] == []


GOOD = {
    "parameters for numbers": """
        params: {n: 1, m: 2 GB, e: 3, list: [a, b], empty: ""}
        stages:
          s: {command: [x], request_cpus: "{{ n }}", max_memory: "{{ m }}", retries: "{{ n + 1 }}",
              final_exit_codes: ["{{ e }}"], priority: "{{ n }}"}
    """,
    "an image by parameters": """
        params: {u: "", i: ""}
        stages: {s: {command: [x], universe: "{{ u }}", image: "{{ i }}"},
                 t: {command: [x], universe: docker, image: "a.b/c:1"}}
    """,
    "bare words of a command": "stages: {s: {command: [x, 1, 1.5, true]}}",
    "command in defaults": "defaults: {command: [x]}\nstages: {s: {}, t: {request_gpus: 1}}",
    "matrix": """
        params: {seeds: [0, 1]}
        stages:
          s-{{ seed }}-{{ w }}-{{ x }}:
            matrix: {seed: "{{ seeds }}", w: [1, 2], x: [a], include: [{seed: 2, w: 3, x: b}],
                     exclude: [{seed: 0, w: 1}]}
            command: [x]
    """,
    "nothing behind a key": "params:\ndefaults:\ntables:\nstages: {s: {command: [x]}}",
    "all of a stage": """
        stages:
          a: {command: [x], outputs: [o]}
          s:
            command: [x]
            needs: [a]
            inputs: [a/o, "http://h/f"]
            outputs: [o]
            template: train.sub.j2
            code: []
            environment: {A: 1, B: true, C: text}
            request_cpus: 2
            request_memory: 1.5 GB
            request_disk: 10G
            request_gpus: 0
            max_memory: 3 GB
            max_disk: 1 TB
            requirements: TARGET.HasIt =?= true
            priority: -3
            submit: {+A: true, MY.B: text, +C: "= 1 + 1", getenv: false, nice_user: true}
            retries: 3
            final_exit_codes: [2, 64]
    """,
}

WRONG = {
    "misspelt": "stages: {s: {comand: [x]}}",
    "misspelt above": "stagez: {s: {command: [x]}}",
    "no stages": "params: {a: 1}",
    "no command": "stages: {s: {needs: []}}",
    "a command as text": "stages: {s: {command: go now}}",
    "no universe": "stages: {s: {command: [x], universe: docke}}",
    "an image that is no text": "stages: {s: {command: [x], universe: docker, image: 1}}",
    "no number": "stages: {s: {command: [x], retries: many}}",
    "negative": "stages: {s: {command: [x], request_cpus: 0}}",
    "no unit": "stages: {s: {command: [x], request_memory: '2000'}}",
    "exit code": "stages: {s: {command: [x], final_exit_codes: [256]}}",
    "variable's name": "stages: {s: {command: [x], environment: {'A B': 1}}}",
    "submit command's name": "stages: {s: {command: [x], submit: {'a b': 1}}}",
    "submit value": "stages: {s: {command: [x], submit: {+A: [1]}}}",
    "stage's name": "stages: {a.b: {command: [x]}}",
    "matrix": "stages: {'s{{ a }}': {command: [x], matrix: {a: []}}}",
    "table without rows": "stages: {s: {command: [x]}}\ntables: [{title: t, columns: {A: a}}]",
    "a row's figure": (
        "stages: {s: {command: [x]}}\ntables: [{title: t, columns: {A: a}, reference: r, "
        "rows: [{label: l, match: {a: 1}, reference: {A: 101}}]}]"
    ),
    "nested parameter": "params: {a: [[1]]}\nstages: {s: {command: [x]}}",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_the_tool_takes_fits(text: str, project: Path) -> None:
    assert wrong(text, project, schema.spec()) == []
    reader.load(project / "x.yaml")


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_the_tool_refuses_too(text: str, project: Path) -> None:
    assert wrong(text, project, schema.spec()) != []
    with pytest.raises(UserError):
        reader.load(project / "x.yaml")


def test_the_schema_of_a_site_is_of_one_mind_with_the_tool(project: Path) -> None:
    assert wrong(GOOD_SITE, project, schema.site()) == []
    site.read(project / "x.yaml")
    for name in ("misspelt", "group", "value", "defaults", "unit"):
        text, _ = WRONG_SITES[name]
        assert wrong(text, project, schema.site()) != [], name
