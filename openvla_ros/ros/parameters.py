"""Parameters written once: type, default, range, unit, meaning. Comes in: a table; goes out: checked plain values.

The type of a parameter is the type of its default; a double accepts an integer. Nothing is refused while the node is being
made, so that a wrong file never kills a process without a word: `read` refuses, with every problem in one message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from openvla_ros.errors import ConfigurationError


@dataclass(frozen=True)
class Parameter:
    """One row of a node's parameter table."""

    name: str
    default: bool | int | float | str
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    locked: str = ""  # when it cannot be changed while the node runs: the state in which it can, in words

    def check(self, value: object) -> bool | int | float | str:
        """The value in the declared type. Raises ConfigurationError that says what came and what is taken."""
        wanted = type(self.default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigurationError(f"parameter '{self.name}' is {value!r} ({type(value).__name__}), "
                                     f"expected {self.takes()}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"parameter '{self.name}' is {value}, expected {self.takes()}.")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not (
                (self.low is None or value >= self.low) and (self.high is None or value <= self.high)):
            raise ConfigurationError(f"parameter '{self.name}' is {value}, expected {self.takes()}.")
        if self.choices and value not in self.choices:
            raise ConfigurationError(f"parameter '{self.name}' is {value!r}, expected {self.takes()}.")
        return value  # type: ignore[return-value]

    def takes(self) -> str:
        """What the parameter accepts, for people: type, range or choices, unit."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        text = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[type(self.default)]
        if self.low is not None and self.high is not None:
            text += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
        return text + (f" [{self.unit}]" if self.unit else "")


def declare(node: Node, table: Sequence[Parameter], locked: Callable[[Parameter], bool]) -> None:
    """Declare the table on the node, and refuse changes at run time that are out of range or locked now.

    locked: asked at each change; true refuses it with the parameter's own words (`Parameter.locked`).
    """
    rows = {row.name: row for row in table}
    for row in table:
        description = ParameterDescriptor(description=f"{row.meaning} Takes {row.takes()}.", dynamic_typing=True)
        node.declare_parameter(row.name, row.default, description)

    def judge(changes: list[RosParameter]) -> SetParametersResult:
        for change in changes:
            row = rows.get(change.name)
            if row is None:
                continue
            try:
                row.check(change.value)
            except ConfigurationError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if locked(row):
                return SetParametersResult(successful=False,
                                           reason=f"parameter '{row.name}' can be changed only {row.locked}.")
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(judge)


def read(node: Node, table: Sequence[Parameter]) -> dict[str, bool | int | float | str]:
    """All values of the table, checked. Raises ConfigurationError with every unknown and every wrong value at once."""
    problems = [f"unknown parameter '{name}'" for name in unknown(node, table)]
    if problems:
        problems.append("this node takes " + ", ".join(row.name for row in table))
    values: dict[str, bool | int | float | str] = {}
    for row in table:
        try:
            values[row.name] = row.check(node.get_parameter(row.name).value)
        except ConfigurationError as error:
            problems.append(str(error).rstrip("."))
    if problems:
        raise ConfigurationError("; ".join(problems) + ".")
    return values


def unknown(node: Node, table: Iterable[Parameter]) -> list[str]:
    """Names that a file or the command line sets for this node and that it does not have: mostly spelling mistakes."""
    known = {row.name for row in table} | {"use_sim_time", "start_type_description_service"}
    overrides = node._parameter_overrides  # rclpy has no public way to list overrides that were never declared
    return sorted(name for name in overrides if name not in known and not name.startswith("qos_overrides."))


def markdown(table: Iterable[Parameter]) -> str:
    """The parameter table of the documentation, so that it cannot differ from the code."""
    lines = ["| parameter | default | takes | may change | meaning |", "| --- | --- | --- | --- | --- |"]
    for row in table:
        default = f"`{str(row.default).lower() if isinstance(row.default, bool) else row.default}`"
        lines.append(f"| `{row.name}` | {default if row.default != '' else '(empty)'} | {row.takes()} | "
                     f"{row.locked or 'at any time'} | {row.meaning} |")
    return "\n".join(lines) + "\n"
