"""What only one output or gripper knows of a profile, read with its type, range and default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openvla_ros.errors import ConfigurationError


class SettingsReader:
    """Takes the settings of one output apart; `finish` refuses what nobody took. Every method raises ConfigurationError."""

    def __init__(self, settings: Mapping[str, object], where: str) -> None:
        self._settings, self._where = dict(settings), where
        self._taken: list[str] = []

    def choice(self, key: str, default: str, known: Sequence[str]) -> str:
        """One of several words."""
        value = self._take(key, default)
        if value not in known:
            raise self._wrong(key, value, f"one of {', '.join(known)}")
        return str(value)

    def text(self, key: str, default: str) -> str:
        """A word that is not empty."""
        value = self._take(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "a text")
        return value

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within a range."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def finish(self) -> None:
        """Refuse keys that nobody knows."""
        if unknown := sorted(set(self._settings) - set(self._taken)):
            raise ConfigurationError(f"{self._where} has unknown keys {unknown}; beside the usual ones it takes "
                                     f"{', '.join(self._taken) or 'none'}.")

    def _take(self, key: str, default: object) -> object:
        self._taken.append(key)
        return self._settings.get(key, default)

    def _wrong(self, key: str, value: object, expected: str) -> ConfigurationError:
        return ConfigurationError(f"{self._where} key {key!r} is {value!r}, expected {expected}.")
