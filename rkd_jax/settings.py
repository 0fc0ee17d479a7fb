"""Settings: each is declared once, with its default, its range and its meaning.

    @dataclasses.dataclass(frozen=True)
    class Settings:
      temperature: float = positive(4.0, 'Temperature of both softmaxes.')

`build(Settings, {'temperature': 2}, 'sd')` is an instance whose values were checked.
The configuration, its listing and its checks, methods, defences and triggers all read
the same declarations. An int is a float, an integral float is an int, a NumPy scalar is
the number in it, and a bool is never a number.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rkd_jax.errors import ConfigError, unknown_name

# What float32 holds without losing precision, and int32.
_SMALLEST, _LARGEST = 1.1754944e-38, 3.4028235e38
MOST = 2**31 - 1


class _Refused(Exception):
  """A value that a rule does not take; the message says what it has to be."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """What the values of a setting must be.

  Attributes:
    wanted: For listings and messages, such as 'a number > 0'.
    read: Gives the value in its own type; raises `_Refused` or ConfigError.
  """

  wanted: str
  read: Callable[[Any], Any]

  def __call__(self, value: Any, where: str) -> Any:
    """The value as its own type; raises ConfigError that names `where`."""
    try:
      return self.read(_unwrapped(value))
    except _Refused as error:
      raise ConfigError(f'{where} must be {error}, got {shown(value)}') from None
    except ConfigError as error:
      raise ConfigError(f'{where}: {error}') from None


def _unwrapped(value):
  """The Python number in a NumPy or JAX scalar."""
  return value.item() if getattr(value, 'shape', None) == () else value


def shown(value: Any) -> str:
  """The value on one short line, for messages."""
  try:
    text = repr(value).replace('\n', ' ')
  except Exception as error:  # noqa: BLE001 - a repr may raise anything.
    text = f'a {type(value).__name__} without a repr ({type(error).__name__})'
  return text if len(text) <= 80 else f'{text[:77]}...'


def _setting(default: Any, meaning: str, rule: Rule, when: Mapping | None = None):
  changeable = isinstance(default, dict)
  return dataclasses.field(
      **({'default_factory': dict} if changeable else {'default': default}),
      metadata={'rule': rule, 'meaning': meaning, 'when': when or {}})


def number(default: float, meaning: str, *, least: float | None = None,
           above: float | None = None, most: float | None = None,
           below: float | None = None, hint: str = '', when: Mapping | None = None):
  """A finite number.

  Args:
    default: Its default.
    meaning: A sentence on what it does, with its unit.
    least, above: Lower end of the range, included and not included.
    most, below: Upper end, likewise.
    hint: Added to the message about a number beyond the upper end.
    when: {other setting: True or the values} with which this one has an effect.
  """
  span = _span(least, above, most, below)

  def read(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      raise _Refused(f'a number {span}'.rstrip())
    try:
      value = float(value)
    except OverflowError:
      value = math.inf
    if not abs(value) <= _LARGEST:
      raise _Refused(f'{span} and finite'.removeprefix(' and '))
    if ((least is not None and value < least)
        or (above is not None and value < max(above, above + _SMALLEST))):
      raise _Refused(span)
    if (most is not None and value > most) or (below is not None and value >= below):
      raise _Refused(span + hint)
    return value

  return _setting(default, meaning, Rule(f'a number {span}'.rstrip(), read), when)


def _span(least, above, most, below) -> str:
  """'> 0', '>= 0', 'in [0, 1]', 'in (0, 1]' and so on."""
  low, high = least if above is None else above, most if below is None else below
  if high is None:
    return '' if low is None else f'{">=" if above is None else ">"} {low}'
  return (f'in {"[" if above is None else "("}{low}, '
          f'{high}{"]" if below is None else ")"}')


positive = functools.partial(number, above=0)
not_negative = functools.partial(number, least=0)
share = functools.partial(number, least=0, most=1)
share_below_one = functools.partial(number, least=0, below=1)
positive_share = functools.partial(number, above=0, most=1)
# Lengths of perturbations; L-inf balls of a radius above 1 hold every image.
radius = functools.partial(
    number, least=0, most=1,
    hint=' (pixels are in [0, 1]: write 8/255 rather than 8)')


def count(default: int, meaning: str, *, least: int = 1, most: int = MOST,
          when: Mapping | None = None):
  """A whole number in [least, most]; the other arguments are those of `number`."""
  return _setting(default, meaning, whole(least, most), when)


def whole(least: int, most: int) -> Rule:
  """Whole numbers in [least, most]."""
  span = f'>= {least}' if most == MOST else f'in [{least}, {most}]'

  def read(value):
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
      raise _Refused(f'a whole number {span}')
    if value < least:
      raise _Refused(f'>= {least}')
    if value > most:
      raise _Refused(f'<= {most}')
    return int(value)

  return Rule(f'a whole number {span}', read)


# PRNG keys are made of 32 bits: 2**32 would be seed 0 once more.
SEED = whole(0, 2**32 - 1)


def seed(default: int, meaning: str):
  """A seed of random numbers, in [0, 2**32)."""
  return _setting(default, meaning, SEED)


def flag(default: bool, meaning: str, *, when: Mapping | None = None):
  """True or False."""
  def read(value):
    if not isinstance(value, bool):
      raise _Refused('true or false')
    return value

  return _setting(default, meaning, Rule('true or false', read), when)


def one_of(default: Any, known: Iterable[Any], meaning: str, *,
           when: Mapping | None = None):
  """One of some names or numbers."""
  known = tuple(known)

  def read(value):
    for name in known:
      if value == name and isinstance(value, bool) == isinstance(name, bool):
        return name
    if not isinstance(value, str):
      raise _Refused(f'one of {", ".join(map(str, known))}')
    raise unknown_name('value', value[:80], map(str, known))

  return _setting(
      default, meaning, Rule('one of ' + ', '.join(map(repr, known)), read), when)


def text(default: str, meaning: str, *, when: Mapping | None = None):
  """One line of text, such as a name or a path."""
  return _setting(default, meaning, Rule('a text', _line), when)


def _line(value):
  if not isinstance(value, str):
    raise _Refused('a text')
  if len(value) > 4096 or not value.isprintable():
    raise _Refused('one line of text')
  return str(value)


def each(rule: Rule, *, plural: str, least: int = 0) -> Rule:
  """A sequence of at least `least` different values of one rule, as a tuple."""
  kind = f'a list of {"one or more " if least else ""}{plural}'

  def read(value):
    if not isinstance(value, list | tuple) or len(value) < least:
      raise _Refused(kind)
    try:
      values = tuple(rule.read(_unwrapped(one)) for one in value)
    except _Refused:
      raise _Refused(kind) from None
    for one in values:
      if values.count(one) > 1:
        raise _Refused(f'{kind}, all different')
    return values

  return Rule(kind, read)


def many(default: tuple, meaning: str, rule: Rule, *, when: Mapping | None = None):
  """A tuple, see `each`."""
  return _setting(default, meaning, rule, when)


SHARES = each(share(0.0, '').metadata['rule'], plural='shares in [0, 1]')
RADII = each(radius(0.0, '').metadata['rule'], least=1,
             plural='radii in [0, 1], in which pixels are')
NAMES = each(Rule('a name', _line), plural='names', least=1)
SEEDS = each(SEED, plural='seeds in [0, 2**32)', least=1)


def free(meaning: str, *, when: Mapping | None = None):
  """A mapping of names to values, which somebody else declares."""
  return _setting({}, meaning, Rule('a mapping of names to values', mapping), when)


def mapping(value: Any) -> dict:
  """A plain dict with texts as keys; nested ones too."""
  if not hasattr(value, 'keys'):
    raise _Refused('a mapping of names to values')
  found = {}
  for key in value:
    if not isinstance(key, str):
      raise _Refused('a mapping whose keys are texts')
    found[key] = mapping(value[key]) if hasattr(value[key], 'keys') else value[key]
  return found


def custom(default: Any, meaning: str, wanted: str, read: Callable[[Any], Any]):
  """A setting with a form of its own; `read` raises ConfigError for any other."""
  return _setting(default, meaning, Rule(wanted, read))


def group(cls: type):
  """A field that holds settings of its own."""
  return dataclasses.field(default_factory=cls, metadata={'group': cls})


def rules(cls: type) -> dict[str, Rule | type]:
  """{name: its rule, or the class of its group}, in the order of declaration."""
  return {field.name: field.metadata.get('group') or field.metadata['rule']
          for field in dataclasses.fields(cls)}


def defaults(cls: type) -> dict[str, Any]:
  """The defaults of a class of settings, groups as nested dicts."""
  return dataclasses.asdict(cls())


def build(cls: type, given: Mapping[str, Any], owner: str):
  """An instance with the given values, checked, and the defaults of all others.

  Args:
    cls: A frozen dataclass of settings. Its method `check()`, if there is one, says
      what must hold between them.
    given: Any mapping.
    owner: Whose settings they are, for messages.

  Raises:
    ConfigError: An unknown name, or a value that its rule does not take.
  """
  if isinstance(given, cls):
    given = {name: getattr(given, name) for name in rules(cls)}
  known, values = rules(cls), {}
  for name, value in given.items():
    if name not in known:
      raise unknown_name(f'setting of {owner}', name, known)
    values[name] = known[name](value, f'{owner}.{name}')
  made = cls(**values)
  if hasattr(made, 'check'):
    try:
      made.check()
    except ConfigError as error:
      raise ConfigError(f'{owner}: {error}') from None
  return made


def idle(cls: type, values: Mapping[str, Any]) -> dict[str, str]:
  """{setting: the other one that keeps it from having an effect} of a class."""
  found = {}
  for field in dataclasses.fields(cls):
    when = getattr(cls, 'WHEN', {}).get(field.name) or field.metadata.get('when', {})
    for other, wanted in when.items():
      value = values[other]
      if not (bool(value) if wanted is True else value in wanted):
        found[field.name] = other
  return found


def describe(cls: type) -> list[tuple[str, Any, str, str]]:
  """(name, default, wanted, meaning) of each setting that is no group."""
  found = []
  for field in dataclasses.fields(cls):
    if 'rule' in field.metadata:
      default = (field.default if field.default is not dataclasses.MISSING
                 else field.default_factory())
      found.append((field.name, default, field.metadata['rule'].wanted,
                    field.metadata['meaning']))
  return found
