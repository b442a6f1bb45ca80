"""The contract as files: a JSON Schema a message, an AsyncAPI 3 document, and what each version meant.

`python -m edge.delivery.schemas DIR` writes them, and one of node.yaml, by which an editor completes
it; `edge/schemas/` holds them. A message whose schema changed needs another number in `schema`: what
was published under a number stays what it was.
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
from edge.delivery.messages import MESSAGES, PREFIX, schema_of
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
            said = ("description", "title")
            return {k: bare(v) for k, v in part.items() if k not in said or isinstance(v, dict)}
        return [bare(one) for one in part] if isinstance(part, list) else part

    return hashlib.sha256(json.dumps(bare(schema), sort_keys=True).encode()).hexdigest()[:16]


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
            "over MQTT 5 or 3.1.1, QoS 1. A receiver deduplicates counts on (node, log, seq).",
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
    """Raises UsageError where a message changed without a step of its version."""
    schemas = {message.__name__.lower(): schema_of(message) for message in MESSAGES}
    path = folder / "versions.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    for schema in schemas.values():
        name, now = identity(schema), fingerprint(schema)
        if known.setdefault(name, now) != now:
            raise UsageError(f"'{name}' is not what it was: give the message another number")
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {f"{name}.json": schema for name, schema in schemas.items()}
    files["node.yaml.json"] = settings_schema()
    files |= {"asyncapi.json": asyncapi(), "versions.json": dict(sorted(known.items()))}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
