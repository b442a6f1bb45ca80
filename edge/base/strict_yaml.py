"""Strict YAML: an unknown key, a wrong type or an impossible value is one line naming the path."""

from __future__ import annotations

import datetime
import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.base.errors import SettingsError


class Strict(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)

MOST_BYTES = 2**20
# Ten lines of aliases to aliases are a billion values once something walks through them all.
MOST_VALUES = 10_000


class _KeyFault(yaml.constructor.ConstructorError):
    """Of ours: what it says may be repeated."""


class _Bounded(yaml.SafeLoader):
    """SafeLoader takes the last of two equal keys without a word; a technician should hear of it."""

    def construct_document(self, node: yaml.Node) -> Any:
        sizes: dict[int, int] = {}

        def size(part: yaml.Node) -> int:
            if id(part) not in sizes:
                sizes[id(part)] = MOST_VALUES + 1  # while it is looked into: it is inside of itself
                inner = part.value if isinstance(part, yaml.CollectionNode) else []
                flat = [n for item in inner for n in (item if isinstance(item, tuple) else (item,))]
                sizes[id(part)] = min(1 + sum(map(size, flat)), MOST_VALUES + 1)
            return sizes[id(part)]

        if size(node) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES} values")
        return super().construct_document(node)  # type: ignore[no-untyped-call]

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        # "\ud83d\ude00" of a JSON writer is two halves of a sign to YAML: no message could hold them,
        # and no path a "\0".
        if isinstance(value, str) and re.search(r"[\0\ud800-\udfff]", value):
            raise ValueError(
                f"line {node.start_mark.line + 1}: \\0 or \\ud..., write the sign itself"
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                text = "<< is not read: write the settings out"
                raise _KeyFault(None, None, text, key_node.start_mark)
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise _KeyFault(
                    None, None, f"key{_given(key, ' ')} must be text", key_node.start_mark
                )
            if key in seen:
                name = f"key '{key}'" if _is_name(key) else "a key"
                raise _KeyFault(None, None, f"{name} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _is_name(text: str) -> bool:
    """Tell whether it can be shown: no address and no part of one."""
    return len(text) <= 60 and not re.search(r"[:@=/?&;!%*]", text)


def _unquoted(problem: object) -> str:
    """Leave out what a library quotes from the file: it may be a password that opens with * or !."""
    return re.sub(r"(['\"]).{2,}\1", "'...'", (str(problem).splitlines() or [""])[0])


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SettingsError in one line, which repeats no value of it."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise SettingsError(
                f"{path}: is larger than {MOST_BYTES >> 20} MiB; give the right file"
            )
        data = yaml.load(content.decode("utf-8"), _Bounded)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, _KeyFault) else _unquoted(error.problem)
        raise SettingsError(f"{path}{place}: {problem}; check the indentation") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {_unquoted(error)}") from error
    except (ValueError, RecursionError) as error:
        # PyYAML lets its own conversions' errors through: a date that is none, brackets by thousands.
        raise SettingsError(
            f"{path}: holds a value that cannot be read ({_unquoted(error)})"[:200]
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must hold 'name: value' lines, not a {type(data).__name__}")
    # A section whose lines are all commented out is an empty one.
    return {key: {} if value is None else value for key, value in data.items()}


def known_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of every setting of a model and its nested models."""
    paths = []
    for name, field in model.model_fields.items():
        paths.append(prefix + name)
        # A section that may be left out is `Section | None`.
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                paths += known_paths(inner, f"{prefix}{name}.")
    return paths


def _given(value: object, between: str = ", not ") -> str:
    """Show what was given where it can be no password: a number, or a short word, which the caller
    knows to stand where a number or one of a few is wanted."""
    word = isinstance(value, str) and len(value) <= 20 and _is_name(value)
    plain = value is None or isinstance(value, bool | int | float) or word
    # Python writes out no number of more than 4,300 digits, which a hexadecimal one may have.
    huge = isinstance(value, int) and value.bit_length() > 1000
    return (
        f"{between}{'a number of hundreds of digits' if huge else repr(value):.60}" if plain else ""
    )


def _not_text(value: object) -> str:
    """Say what YAML made of a text without quotes."""
    if value is None:
        return "is empty: give it a text, or leave the line out"
    kinds = {bool: "yes or no", int: "a number", float: "a number", datetime.date: "a date"}
    kind = kinds.get(type(value), "a date" if isinstance(value, datetime.date) else "")
    return f"must be text, and YAML reads this as {kind}: put it in quotes" if kind else ""


_WORDS = {f"{kind}_{what}" for kind in ("int", "float", "bool") for what in ("type", "parsing")} | {
    "literal_error"
}


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    # An unknown key first: it usually explains what else is wrong.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"])
    # Of an address without quotes in braces, YAML makes a name without a value behind each comma.
    torn = first["input"] is None
    if first["type"] == "extra_forbidden" and (torn or not _is_name(path)):
        text = "a setting's name is none of ours; see the annotated node.yaml"
    elif first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, known_paths(model), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else "; see the annotated node.yaml"
        text = f"unknown setting '{path}'{hint}"
    elif first["type"] == "value_error":
        text = f"'{path}' {first['ctx']['error']}" if path else str(first["ctx"]["error"])
    elif first["type"] == "missing":
        text = f"'{path}' is missing"
    elif first["type"] in ("model_type", "dataclass_type"):
        within = [name for name in known_paths(model) if name.startswith(f"{path}.")]
        example = f", such as '{within[0]}'" if within else ""
        text = f"'{path}' is a section: its settings go below it{example}"
    elif first["type"] in ("list_type", "tuple_type"):
        text = f"'{path}' wants a list: write it in brackets, [...]"
    elif first["type"] == "string_unicode":
        text = f"'{path}' holds bytes that are not UTF-8: rename the file or folder"
    elif first["type"] == "string_type" and (hint := _not_text(first["input"])):
        text = f"'{path}' {hint}"
    else:
        # A text in the place of a section or a file may be an address.
        open_text = isinstance(first["input"], str) and first["type"] not in _WORDS
        given = "" if open_text else _given(first["input"])
        text = f"'{path}' {first['msg'][0].lower()}{first['msg'][1:]}{given}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def validate(model: type[Model], data: dict[str, Any], where: str) -> Model:
    """data as a `model`; raises SettingsError with one line that opens with `where`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SettingsError(f"{where}: {_first_problem(error, model)}") from error
