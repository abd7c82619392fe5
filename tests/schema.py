"""docs/openapi.json as a check of real answers: what isn't described in it fails."""

import copy
import json
import pathlib

import jsonschema

DOCUMENT = json.loads((pathlib.Path(__file__).resolve().parents[1] / "docs" / "openapi.json").read_text())


def strict(schema):
    """A schema of OpenAPI 3.0 as JSON Schema that knows no members but the described ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: {name: strict(value) for name, value in item.items()} if key == "properties" else strict(item)
           for key, item in schema.items()}
    nullable = out.pop("nullable", False)
    if "$ref" in out:
        out = {"$ref": out["$ref"]}
    elif "properties" in out:
        out["additionalProperties"] = False
    elif out.get("type") == "object" and "additionalProperties" not in out:
        raise AssertionError(f"an object whose members aren't described: {schema}")
    return {"anyOf": [{"type": "null"}, out]} if nullable else out


COMPONENTS = {}
for _name, _schema in DOCUMENT["components"]["schemas"].items():
    if _name not in ("EnrollRequest", "SyncRequest"):  # an agent may be newer than its center
        COMPONENTS[_name] = strict(copy.deepcopy(_schema))


def check(schema, value, what):
    """Like validate(), but says where."""
    whole = {"components": {"schemas": COMPONENTS}, **strict(schema)}
    errors = sorted(jsonschema.Draft7Validator(whole).iter_errors(value), key=lambda e: list(e.absolute_path))
    leaves = [leaf for error in errors for leaf in (error.context or [error])]
    assert not errors, f"{what}: " + "; ".join(
        f"{'.'.join(map(str, leaf.absolute_path))}: {leaf.message[:300]}" for leaf in leaves)


def check_as(name, value):
    check({"$ref": f"#/components/schemas/{name}"}, value, name)
