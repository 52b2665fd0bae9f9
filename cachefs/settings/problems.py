"""What is said of a wrong setting: its key, its value, and what it can be."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cachefs.units import GIB, KIB, MIB, TIB

_NEAR = 0.6
"""difflib's measure of likeness, from which a name is taken for a misspelling of another."""

_LIMITS = {"greater_than_equal", "greater_than", "less_than_equal", "less_than", "literal_error"}

_UNITS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


class SizeMark:
    """In the metadata of a field: its number is of bytes, and may be written as a size."""


def describe(model: type[BaseModel], error: ValidationError) -> str:
    """Return all problems of an error in one line."""
    return "; ".join(_problem(model, problem) for problem in error.errors())


def is_size(field: FieldInfo) -> bool:
    """Whether a field is a number of bytes that may be written as a size."""
    return any(isinstance(mark, SizeMark) for mark in field.metadata)


def allowed(field: FieldInfo) -> str:
    """Return what a field can be, for people; empty if it has no limits to speak of."""
    choices = list(_choices(field.annotation))
    if choices:
        return " or ".join(f"'{choice}'" for choice in choices)
    show = size_text if is_size(field) else str
    limits = [limit for limit in map(partial(_limit, show), field.metadata) if limit]
    if limits:
        number = "a whole number" if field.annotation is int else "a number"
        return f"{'a size' if is_size(field) else number}, {' to '.join(limits)}"
    return "true or false" if field.annotation is bool else ""


def _limit(show: Callable[[Any], str], limit: object) -> str:
    """Return a limit for people, empty if it is none; the lower one comes first in every field."""
    if isinstance(limit, annotated_types.Ge):
        return show(limit.ge)
    if isinstance(limit, annotated_types.Gt):
        return f"more than {show(limit.gt)}"
    if isinstance(limit, annotated_types.Le):
        return show(limit.le)
    return f"less than {show(limit.lt)}" if isinstance(limit, annotated_types.Lt) else ""


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str | None:
    """Return the name that is most likely meant, None if none is near."""
    found = difflib.get_close_matches(name, list(names), 1, _NEAR)
    return found[0] if found else None


def nearest_key(model: type[BaseModel], place: tuple[str, ...]) -> str | None:
    """Return the key that is most likely meant by one that does not exist.

    That is the key of that name in another section, or one with a name like it in its own.
    """
    *sections, key = place
    for name in model.model_fields:
        other = _section(model, name)
        if other and key in other.model_fields:
            return f"{name}.{key}"
    own = _section(model, sections[0]) if sections else model
    near = nearest(key, list(own.model_fields)) if own else None
    return ".".join([*sections, near]) if near else None


def size_text(size_bytes: Any) -> str:
    """Return a number of bytes as a configuration may have it, exactly."""
    for unit, name in _UNITS:
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return str(size_bytes)


def shown(value: object) -> str:
    """Return a value for a message, without what may be a password in an address."""
    return re.sub(r"//[^/'\"]*@", "//***@", repr(value))


def _problem(model: type[BaseModel], problem: Any) -> str:
    place = tuple(map(str, problem["loc"]))
    is_secret = "password" in place[-1] and not place[-1].endswith("_file")
    said = f"{'.'.join(place)} = {'***' if is_secret else shown(problem['input'])}"
    if problem["type"] == "extra_forbidden":
        near = nearest_key(model, place)
        return f"{said}: there is no such key" + (f"; is {near} meant?" if near else "")
    field = _field(model, place)
    range_text = allowed(field) if field else ""
    is_limit = problem["type"] in _LIMITS
    if range_text and (is_limit or problem["type"].endswith(("_parsing", "_type"))):
        return f"{said}: it can be {range_text}"
    more = f"; it can be {range_text}" if range_text else ""
    return f"{said}: {problem['msg'].removeprefix('Value error, ')}{more}"


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    found = field.annotation if field else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _field(model: type[BaseModel], place: tuple[str, ...]) -> FieldInfo | None:
    if len(place) == 1:
        return None if _section(model, place[0]) else model.model_fields.get(place[0])
    section = _section(model, place[0])
    return section.model_fields.get(place[1]) if section else None


def _choices(annotation: Any) -> Iterator[str]:
    """Yield the texts of a Literal, also within a union."""
    if get_origin(annotation) is Literal:
        yield from (str(choice) for choice in get_args(annotation))
    elif get_origin(annotation) in {Union, types.UnionType}:
        for part in get_args(annotation):
            yield from _choices(part)
