"""Types of settings: parts of topics, paths, `auto`, and the defaults of this machine."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from edge.base.errors import SettingsError

# How a path opens that lies in what systemd hands to this service alone (LoadCredential=).
CREDENTIALS = "$CREDENTIALS_DIRECTORY"


def _segment(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+", value):
        raise ValueError("may hold only a-z, 0-9 and '-', since it is part of a topic")
    return value


def _recorder_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,32}", value):
        raise ValueError("must be a recorder's --name: a-z, 0-9 and '-', at most 32 of them")
    return value


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("each recorder is named once")
    return names


def _path(value: object) -> object:
    if not isinstance(value, str):
        return value
    first, *rest = Path(value).parts or [""]
    if first == CREDENTIALS and (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
        return Path(folder, *rest)
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{value}': no such user") from error


def own_hostname() -> str:
    """Return this machine's name as a topic segment."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name or "node"


def default_state() -> Path:
    """Return systemd's state folder, or `$XDG_STATE_HOME/edge-node`, or `~/.local/state/edge-node`.

    Raises SettingsError for a user without a home."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "edge-node"
    except RuntimeError as error:
        raise SettingsError(
            "this user has no home folder; set HOME, or runtime.state in node.yaml"
        ) from error


Segment = Annotated[str, AfterValidator(_segment)]
# At most four: what an outbox knows of itself fits one page of its file.
RecorderNames = Annotated[
    list[Annotated[str, AfterValidator(_recorder_name)]],
    Field(max_length=4),
    AfterValidator(_each_once),
]
FilePath = Annotated[Path, BeforeValidator(_path)]


def _auto(value: object) -> object:
    return None if value == "auto" else value


class _Auto:
    """Of a setting that is None in code where node.yaml says `auto`; its JSON Schema says so too."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(_auto, handler(source))

    def __get_pydantic_json_schema__(
        self, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        known = handler(core)
        values = [one for one in known["anyOf"] if one != {"type": "null"}]
        return {**known, "anyOf": [*values, {"const": "auto"}]}


AUTO = _Auto()
