"""Weights, gradients and velocities of a whole network, in the users' layout, from and to the shares of its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ops.layout import to_device, to_user, user_shape
from .layers import Parameter, Side
from .wiring import Wiring

Values = np.ndarray[Any, Any]


def _shares(wiring: Wiring) -> dict[str, list[tuple[Side, Parameter]]]:
    """Every parameter's parts with the devices they lie on, in the order of the towers."""
    found: dict[str, list[tuple[Side, Parameter]]] = {}
    for block in wiring.learning:
        for layer in block:
            for parameter in layer.parameters:
                found.setdefault(parameter.name, []).append((layer.side, parameter))
    return found


def collect(wiring: Wiring, what: str) -> dict[str, Values]:
    """Copies of ``what`` ("value", "velocity" or "gradient") of all parameters, by name."""
    return {
        name: np.concatenate([to_user(getattr(p, what).download()) for _, p in shares], axis=_axis(shares[0][1]))
        for name, shares in _shares(wiring).items()
    }


def distribute(wiring: Wiring, what: str, values: Mapping[str, Values]) -> None:
    """The reverse. Raises ``ValueError``, and changes nothing, where a name or a shape does not fit."""
    by_name = _shares(wiring)
    _check_names(values, by_name)
    cut = {name: _cut(name, np.asarray(values[name]), shares) for name, shares in by_name.items()}
    for name, shares in by_name.items():
        for (side, parameter), part in zip(shares, cut[name], strict=True):
            side.stream.upload(getattr(parameter, what), to_device(part, parameter.value.shape))


def check_parameters(values: Mapping[str, Values], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ``ValueError`` unless these are parameters of such shapes."""
    _check_names(values, shapes)
    for name, shape in shapes.items():
        _check(name, np.asarray(values[name]), shape)


def _check_names(values: Mapping[str, Values], wanted: Mapping[str, Any]) -> None:
    if set(values) != set(wanted):
        missing, unknown = sorted(set(wanted) - set(values)), sorted(set(values) - set(wanted))
        raise ValueError(
            f"parameters do not match the network: missing {missing or 'none'}, unknown {unknown or 'none'}"
        )


def _check(name: str, value: Values, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.dtype != np.float32:
        raise ValueError(f"{name} must be float32 of shape {shape}, got {value.dtype} of shape {value.shape}")


def _cut(name: str, value: Values, shares: Sequence[tuple[Side, Parameter]]) -> list[Values]:
    shape = user_shape(shares[0][1].value.shape)
    axis = _axis(shares[0][1])
    whole = (*shape[:axis], shape[axis] * len(shares), *shape[axis + 1 :])
    _check(name, value, whole)
    return np.split(value, len(shares), axis)


def _axis(parameter: Parameter) -> int:
    """Which axis, as users see it, has the filters or features: behind P and Q in weights of a local layer."""
    return 2 if len(parameter.value.shape) == 7 else 0
