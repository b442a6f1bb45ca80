"""Strict YAML: an unknown key, a wrong type or an impossible value is one line naming the path."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.base.errors import SettingsError


class Strict(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


class _OneOfEach(yaml.SafeLoader):
    """SafeLoader takes the last of two equal keys without a word; a technician should hear of it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SettingsError in one line."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _OneOfEach)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{place}: {error.problem}; check the indentation") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, RecursionError) as error:
        # PyYAML lets its own conversions' errors through: a date that is none, brackets by thousands.
        raise SettingsError(f"{path}: holds a value that cannot be read ({error})"[:200]) from error
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
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            paths += known_paths(inner, f"{prefix}{name}.")
    return paths


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    # An unknown key first: it usually explains what else is wrong.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, known_paths(model), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else "; see the annotated node.yaml"
        text = f"unknown setting '{path}'{hint}"
    elif first["type"] == "value_error":
        text = f"'{path}' {first['ctx']['error']}" if path else str(first["ctx"]["error"])
    elif first["type"] == "missing":
        text = f"'{path}' is missing"
    else:
        given = f", not {first['input']!r:.60}" if not isinstance(first["input"], dict) else ""
        text = f"'{path}' {first['msg'][0].lower()}{first['msg'][1:]}{given}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def validate(model: type[Model], data: dict[str, Any], where: str) -> Model:
    """data as a `model`; raises SettingsError with one line that opens with `where`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SettingsError(f"{where}: {_first_problem(error, model)}") from error
