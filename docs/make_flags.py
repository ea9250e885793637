"""Writes the page of all flags and options, from what the programs themselves know of them.

    python docs/make_flags.py > docs/flags.md

A test tells when that is due. TensorFlow is not loaded for it.
"""

from __future__ import annotations

import argparse
import contextlib
import typing
from collections.abc import Callable, Iterable, Iterator

from absl import flags

from isl import program_flags
from isl.programs import make_shards

_INTRODUCTION = """# Flags

<!-- Written by docs/make_flags.py from the programs' own flags. -->

These are all flags of `isl-launch` (the same as `python -m isl.launch` and
`bazel run isl:launch --`), then the options of [`make_shards`](#options-of-make_shards).

A flag is given as `--name=value` or `--name value`. A switch, whose values are true and false, is
given as `--name` or `--noname`. Where the default is empty, the flag is not set. A wrong value ends
the program with status 1 and one line that names the flag, the value and what is allowed.

The flags of absl work, too: `--flagfile=FILE` reads flags from a file, one a line;
`--alsologtostderr` is accepted, as in the original's commands; `--helpfull` prints all flags.
"""


def _code(text: str) -> str:
  return f'`{text}`' if text else ''


def _prose(text: str) -> str:
  """Escapes what would be taken for Markdown in a text."""
  for special in '\\|<*':
    text = text.replace(special, '\\' + special)
  return text


def _default(value: object) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return str(value).lower()
  return ','.join(map(str, value)) if isinstance(value, list) else str(value)


def _allowed(flag: flags.Flag) -> str:
  """Describes the values that a flag takes, as far as the flag's help does not."""
  parser = flag.parser
  if isinstance(parser, flags.EnumParser):
    return ', '.join(map(_code, parser.enum_values))
  if isinstance(parser, flags.BooleanParser):
    return 'true, false'
  kind = 'a comma list' if isinstance(parser, flags.ListParser) else parser.syntactic_help or 'text'
  # absl's own message says nothing.
  rules = (check.message for check in flag.validators if check.message != 'Flag validation failed')
  return '; '.join([kind, *rules])


def _meaning(flag: flags.Flag) -> str:
  """A flag's help, without the allowed values that absl puts in front of some."""
  return flag.help.partition('>: ')[2] if isinstance(flag.parser, flags.EnumParser) else flag.help


def _table(rows: Iterable[tuple[str, str, str, str]], what: str) -> Iterator[str]:
  yield f'| {what} | default | values | meaning |'
  yield '|---|---|---|---|'
  for name, default, values, meaning in rows:
    # Else empty cells end in two spaces.
    yield ' '.join(f'| {_code(name)} | {_code(default)} | {values} | {_prose(meaning)} |'.split())


def _program_flags() -> Iterator[str]:
  """Yields the lines of isl-launch's flags, in the program's groups and order."""
  for module, defined in program_flags.FLAGS.flags_by_module_dict().items():
    if module.startswith(program_flags.GROUP_PREFIX):
      title = module.removeprefix(program_flags.GROUP_PREFIX)
      yield f'\n## {title[0].upper()}{title[1:]}\n'
      yield from _table(
        ((f'--{f.name}', _default(f.default), _allowed(f), _meaning(f)) for f in defined), 'flag'
      )


def _allowed_option(option: argparse.Action) -> str:
  if option.nargs == 0:
    return 'no value'
  if option.choices:
    first, *_, last = option.choices
    return f'{first} to {last}'
  if option.type is None:
    return 'text'
  read = typing.cast(Callable[[str], object], option.type)
  for least in range(2):
    with contextlib.suppress(argparse.ArgumentTypeError):
      return f'a whole number from {least} on' if read(str(least)) == least else 'a comma list'
  raise AssertionError(option)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
  """Yields the lines of a parser's options."""
  yield from _table(
    (
      (
        option.option_strings[0],
        '' if option.nargs == 0 else _default(option.default),
        _allowed_option(option) + '; needed' * option.required,
        (option.help or '') % {'default': option.default},
      )
      for option in parser._actions
      if option.dest != 'help'
    ),
    'option',
  )


def draw() -> str:
  """Draws up the whole page, in Markdown."""
  lines = [
    _INTRODUCTION.rstrip(),
    *_program_flags(),
    '\n## Options of make_shards\n',
    '`python -m isl.programs.make_shards` writes training shards, see [shards](shards.md).\n',
    *_options(make_shards.make_parser()),
  ]
  return '\n'.join(lines)


if __name__ == '__main__':
  print(draw())
