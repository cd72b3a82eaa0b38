"""The JSON Schema of a spec and of a site's profile, for editors: generated from the models.

A spec's file says less than the pipeline that it means: text may hold ``{{ parameter }}`` where a
number is expected, and ``defaults`` and matrices are still to be filled in.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from condorctl.spec.pipeline import Pipeline, Site, Stage, Table, TableRow
from condorctl.spec.spec_file import NAME
from condorctl.spec.yaml_text import Scalar

Json = dict[str, Any]

_FILLED_IN = {"type": "string", "pattern": r"\{\{.*\}\}"}


class Matrix(BaseModel):
    """The axes of a stage, name: values. It stands for a stage a combination of them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[list[Scalar], Field(min_length=1)]]

    include: list[dict[str, Scalar]] = Field([], description="combinations to add")
    exclude: list[dict[str, Scalar]] = Field([], description="combinations to leave out")


class _Strict(GenerateJsonSchema):
    """Pydantic's schema, less the titles that only repeat the keys."""

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        return super().generate(schema, mode) | {"$schema": self.schema_dialect}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        # A name that fits no pattern is a mistake.
        return found | {"additionalProperties": False} if "patternProperties" in found else found


class _Written(_Strict):
    """The same as an author may write it: a parameter in the place of any value."""

    keys = False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _FILLED_IN]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _FILLED_IN]}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        found = super().str_schema(schema)
        return {"anyOf": [found, _FILLED_IN]} if "pattern" in found and not self.keys else found

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"anyOf": [super().literal_schema(schema), {"const": ""}, _FILLED_IN]}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        # Parameters are filled into values, not into the keys above them.
        self.keys = True
        found = super().dict_schema(schema)
        self.keys = False
        return found


def spec() -> Json:
    """The schema of a spec's file."""
    top = _properties(Pipeline)
    keys = _properties(Stage)
    del keys["name"]
    matrix = Matrix.model_json_schema(schema_generator=_Written)
    axis = matrix["additionalProperties"]
    matrix["additionalProperties"] = {"anyOf": [axis, _FILLED_IN]}
    del matrix["$schema"]
    stage = _mapping({**keys, "matrix": matrix}) | {"description": Stage.__doc__}
    row, table = _properties(TableRow), _properties(Table)
    lines = _mapping(row, ["label", "match"])
    table["rows"] = table["rows"] | {"items": lines}
    tables = _mapping(table, ["title", "columns", "rows"])
    params = {"anyOf": [{"type": ["string", "boolean", "number"]}, _list(1)]}
    name = r"^(?:[A-Za-z0-9_-]|\{\{[^{}]*\}\})+$"
    properties = {
        "name": top["name"] | {"pattern": f"^{NAME}$"},
        "description": top["description"],
        "site": {"type": "string", "description": top["site"]["description"]},
        "params": _or_nothing(top["params"] | {"additionalProperties": params}),
        "defaults": _or_nothing(_mapping(keys) | {"description": "what all stages share"}),
        "stages": {
            "type": "object",
            "description": top["stages"]["description"],
            "minProperties": 1,
            "propertyNames": {"pattern": name},
            "additionalProperties": stage,
        },
        "tables": _or_nothing(top["tables"] | {"items": tables}),
    }
    each = {"additionalProperties": {"required": ["command"]}}
    return {
        "$schema": _Written.schema_dialect,
        "title": "Pipeline",
        "description": "A pipeline of condorctl: stages that run as HTCondor jobs.",
        **_mapping(properties, ["stages"]),
        "if": {"properties": {"defaults": {"required": ["command"]}}, "required": ["defaults"]},
        "else": {"properties": {"stages": each}},
    }


def site() -> Json:
    """The schema of a site's profile."""
    found = Site.model_json_schema(schema_generator=_Strict)
    for own in ("name", "file"):
        del found["properties"][own]
    del found["required"]
    return found


def _properties(model: type[BaseModel]) -> Json:
    """The keys of a model, each with its schema."""
    found: Json = model.model_json_schema(schema_generator=_Written)["properties"]
    return found


def _mapping(properties: Json, required: list[str] | None = None) -> Json:
    found: Json = {"type": "object", "additionalProperties": False, "properties": properties}
    return found | {"required": required} if required else found


def _list(least: int) -> Json:
    return {
        "type": "array",
        "minItems": least,
        "items": {"type": ["string", "boolean", "number"]},
    }


def _or_nothing(schema: Json) -> Json:
    """A key may stand there with nothing behind it."""
    return schema | {"type": [schema["type"], "null"]}
