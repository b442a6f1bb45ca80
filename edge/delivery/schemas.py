"""The contract as files: a JSON Schema a message, an AsyncAPI 3 document, and what each version meant.

`python -m edge.delivery.schemas DIR` writes them, and one of node.yaml, by which an editor completes
it; `edge/schemas/` holds them. Published schemas are open: a later release may add fields, with a
default, under the same number, and a subscriber that validates goes on. Any other change needs another
number in `schema`. The strict form, `schema_of`, is for what this release itself writes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import edge
from edge.base.errors import UsageError
from edge.delivery.commands import NAMES
from edge.delivery.messages import MESSAGES, PREFIX, Command, schema_of
from edge.settings import Settings

# The last part of a message's topic; who writes it; whether it is retained; what it is for.
CHANNELS: dict[str, tuple[str, str, bool, str]] = {
    "counts": ("Counts", "node", False, "One window of one room."),
    "status": ("Status", "node", True, "How the node is; `lost` is the broker's word for it."),
    "info": ("Info", "node", True, "What the node is and how it counts."),
    "health": ("Health", "node", False, "How the node does, every half minute."),
    "ack": ("Ack", "server", True, "How far a recorder stored a log; what it lacks comes again."),
    "cmd/{command}": ("Command", "server", False, "What a school asks of a node, once an id."),
    "cmd/{command}/result": ("Result", "node", False, "What became of a command."),
}
OPEN = "A later release may add fields under the same number: pass over those that you do not know."
# A field passed over could be the one that limits what a command does.
SHUT = " A node ignores a command that has a field it does not know."
SEGMENTS = {
    "site": "The school: a-z, 0-9 and -.",
    "room": "The room: a-z, 0-9 and -.",
    "node": "The node, unique in its room: a-z, 0-9 and -.",
}


def identity(schema: dict[str, Any]) -> str:
    """What a message says in `schema`, such as edge.counts/1."""
    return str(schema["properties"]["schema"]["const"])


def fingerprint(schema: dict[str, Any]) -> str:
    """Of what a schema demands: descriptions may change, what is valid may not."""

    def bare(part: Any) -> Any:
        if isinstance(part, dict):
            said = ("description", "title", "$comment")
            return {k: bare(v) for k, v in part.items() if k not in said or isinstance(v, dict)}
        return [bare(one) for one in part] if isinstance(part, list) else part

    return hashlib.sha256(json.dumps(bare(schema), sort_keys=True).encode()).hexdigest()[:16]


def opened(schema: Any) -> Any:
    """Return a schema that lets fields pass which it does not name, at any depth."""
    if isinstance(schema, dict):
        shut = {"additionalProperties": False}
        return {k: opened(v) for k, v in schema.items() if {k: v} != shut}
    return [opened(one) for one in schema] if isinstance(schema, list) else schema


def published(message: Any) -> dict[str, Any]:
    """Return the JSON Schema of a message as subscribers get it."""
    schema = opened(schema_of(message))
    comment = OPEN + SHUT if message is Command else OPEN
    return {"$schema": schema.pop("$schema"), "$comment": comment, **schema}


def extends(new: Any, old: Any) -> bool:
    """Tell whether a schema demands what an earlier one did, and at most adds optional fields."""

    def known(new: Any, old: Any) -> Any:
        """The part of `new` of which `old` knows."""
        if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
            return [known(n, o) for n, o in zip(new, old, strict=True)]
        if not (isinstance(new, dict) and isinstance(old, dict)):
            return new
        found = {k: known(v, old.get(k)) for k, v in new.items()}
        for part in ("properties", "$defs"):
            if isinstance(found.get(part), dict):
                found[part] = {k: v for k, v in found[part].items() if k in old.get(part, {})}
        return {k: v for k, v in found.items() if v or k in old}

    return fingerprint(known(new, old)) == fingerprint(old)


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document, from the server's side: it receives what nodes write."""
    names = {message.__name__: message for message in MESSAGES}
    channels, operations = {}, {}
    for kind, (name, writer, retained, text) in CHANNELS.items():
        key = kind.replace("/{command}", "").replace("/", "-")
        parameters: dict[str, Any] = {n: {"description": d} for n, d in SEGMENTS.items()}
        if "{command}" in kind:
            parameters["command"] = {"description": "Which command.", "enum": list(NAMES)}
        channels[key] = {
            "address": f"{PREFIX}/{{site}}/{{room}}/{{node}}/{kind}",
            "description": text,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": parameters,
        }
        operations[f"{'receive' if writer == 'node' else 'send'}-{key}"] = {
            "action": "receive" if writer == "node" else "send",
            "channel": {"$ref": f"#/channels/{key}"},
            "summary": text,
            "bindings": {"mqtt": {"qos": 1, "retain": retained, "bindingVersion": "0.2.0"}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Classroom node kit",
            "version": edge.__version__,
            "description": "Counts of expressions from classroom nodes, never a picture. JSON in UTF-8 "
            "over MQTT 5 or 3.1.1, QoS 1. A receiver deduplicates counts on (node, log, seq). "
            + OPEN,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "school": {
                "host": "broker.school.example:8883",
                "protocol": "secure-mqtt",
                "description": "The school's broker, with mutual TLS; see edge-watch broker.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                name: {
                    "name": identity(schema_of(model)),
                    "payload": {
                        "schemaFormat": "application/schema+json;version=draft-2020-12",
                        "schema": {"$ref": f"./{name.lower()}.json"},
                    },
                }
                for name, model in names.items()
            }
        },
    }


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of node.yaml, without what differs between machines."""
    schema = Settings.model_json_schema()
    for section in schema["$defs"].values():
        for setting in section["properties"].values():
            if {"const": "auto"} in setting.get("anyOf", ()):
                setting["default"] = "auto"  # None in code
    schema["title"] = "node.yaml of a classroom node"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def write(folder: Path) -> None:
    """Write the contract over the one before. Raises UsageError where what a message demands changed
    without a step of its number."""
    schemas = {message.__name__.lower(): published(message) for message in MESSAGES}
    path = folder / "versions.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    for message in MESSAGES:
        name, now = identity(schema_of(message)), fingerprint(schema_of(message))
        before = folder / f"{message.__name__.lower()}.json"
        if known.get(name, now) != now and not (
            before.is_file() and extends(published(message), json.loads(before.read_text()))
        ):
            raise UsageError(
                f"'{name}' is not what it was: give the message another number, or only add fields "
                f"that have a default"
            )
        known[name] = now
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {f"{name}.json": schema for name, schema in schemas.items()}
    files["node.yaml.json"] = settings_schema()
    files |= {"asyncapi.json": asyncapi(), "versions.json": dict(sorted(known.items()))}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
