"""`rkd config`: every setting with its default, its range and its meaning."""

from collections.abc import Iterable, Iterator

from rkd_jax import sections, settings
from rkd_jax.errors import unknown_name


def lines(names: Iterable[str] = ()) -> Iterator[str]:
  """The settings of some sections, methods, defences and triggers, line by line.

  Args:
    names: As in the config and in `rkd list`; none: all sections but the methods'.

  Raises:
    ConfigError: A name that is none of these.
  """
  if not names:
    yield from _section('config', sections.Experiment.__doc__, sections.Experiment)
    yield ('those of a method, a defence or a trigger: rkd config NAME, such as '
           'rkd config ciard masks badnets')
  for name in names:
    yield from _section(*_found(name))


def _found(name):
  """(what the settings are called, what they are of, their class)."""
  known = {key: kind for key, kind in settings.rules(sections.Experiment).items()
           if isinstance(kind, type)}
  if name in known:
    return f'config.{name}', known[name].__doc__, known[name]
  from rkd_jax import backdoors, detox, distill  # These load JAX, which takes a second.
  for owner, modules in (('config.', distill.METHODS),
                         ('config.detox.options of ', detox.METHODS)):
    if name in modules:
      return f'{owner}{name}', modules[name].SUMMARY, modules[name].Settings
  if name in backdoors.SETTINGS:
    return (f'config.backdoor.options of {name}', dict(backdoors.describe())[name],
            backdoors.SETTINGS[name])
  raise unknown_name('section, method, defence or trigger', name, (
      *known, *distill.METHODS, *detox.METHODS, *backdoors.SETTINGS))


def _section(title, summary, kind):
  yield f'{title}: {summary}'
  entries = settings.describe(kind)
  if not entries:
    yield '  no settings'
  for name, default, wanted, meaning in entries:
    yield f'  {name} = {default!r}'
    yield f'      {wanted}. {meaning}'
  for name, inner in settings.rules(kind).items():
    if isinstance(inner, type):
      yield from _section(f'{title}.{name}', inner.__doc__, inner)
