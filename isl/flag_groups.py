"""Groups of flags, as --helpfull shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

GROUP_PREFIX = 'isl: '


class Group:
  """Defines flags under a title of --helpfull."""

  def __init__(self, title: str):
    self._module_name = GROUP_PREFIX + title

  def _define(self, define: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> None:
    define(name, *args, module_name=self._module_name, **kwargs)
    flags.declare_key_flag(name)

  def text(self, name: str, default: str | None, meaning: str) -> None:
    """A string."""
    self._define(flags.DEFINE_string, name, default, meaning)

  def switch(self, name: str, default: bool, meaning: str) -> None:
    """--name or --noname."""
    self._define(flags.DEFINE_boolean, name, default, meaning)

  def integer(self, name: str, default: int | None, meaning: str, *, least: int = 1) -> None:
    """A whole number of at least `least`."""
    self._define(flags.DEFINE_integer, name, default, meaning, lower_bound=least)

  def number(self, name: str, default: float, meaning: str, *, least: float = 0.0) -> None:
    """A finite number of at least `least`."""
    self._define(flags.DEFINE_float, name, default, meaning, lower_bound=least)
    flags.register_validator(name, math.isfinite, 'must be a finite number')

  def choice(self, name: str, default: str, allowed: Iterable[str], meaning: str) -> None:
    """One of `allowed`."""
    self._define(flags.DEFINE_enum, name, default, list(allowed), meaning)

  def names(self, name: str, default: list[str] | None, meaning: str) -> None:
    """A comma list without repetitions."""
    self._define(flags.DEFINE_list, name, default, meaning)
    flags.register_validator(name, _no_name_twice)

  def choices(self, name: str, default: list[str], allowed: list[str], meaning: str) -> None:
    """A comma list of some of `allowed`."""
    self.names(name, default, f'{meaning} A comma list of {", ".join(allowed)}.')

    def all_allowed(values: list[str]) -> bool:
      wrong = [value for value in values if value not in allowed]
      if wrong:
        raise flags.ValidationError(f'{", ".join(wrong)} is not one of {", ".join(allowed)}')
      return True

    flags.register_validator(name, all_allowed)


def _no_name_twice(values: list[str] | None) -> bool:
  if values and len(set(values)) < len(values):
    raise flags.ValidationError('names one of them twice')
  return True
