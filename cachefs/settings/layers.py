"""Layers of settings, one above the other, and for each value the layer that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PRESET_KEY = "preset"


class Layer(NamedTuple):
    """Settings from one place.

    Attributes:
        origin: The place, for people.
        values: Section -> key -> value, or what somebody wrote in place of that.
    """

    origin: str
    values: Mapping[str, Any]


class Merged(NamedTuple):
    """What layers say together.

    Attributes:
        values: As in a layer.
        origins: By (section, key), or by (key,) for what has no section: the uppermost layer that
            says it.
    """

    values: dict[str, Any]
    origins: dict[tuple[str, ...], str]


def merge(layers: Sequence[Layer]) -> Merged:
    """Return what layers say; a later one is above the earlier ones.

    A section that is none (a number, say) hides those below it, for the checks to complain about.
    """
    values: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for origin, said in layers:
        for section, settings in said.items():
            if not isinstance(settings, Mapping):
                values[section] = settings
                origins[section,] = origin
                continue
            held = values.setdefault(section, {})
            if isinstance(held, dict):
                held.update(settings)
                origins.update({(section, key): origin for key in settings})
    return Merged(values, origins)


def chosen_preset(layers: Sequence[Layer]) -> object:
    """Return the preset that the uppermost layer names, None if none does."""
    named = [layer.values[PRESET_KEY] for layer in layers if PRESET_KEY in layer.values]
    return named[-1] if named else None
