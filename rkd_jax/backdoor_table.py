"""One table of several comparisons, a trigger each: ACC, ASR and mean DER of a row."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rkd_jax import config as configuration
from rkd_jax import files
from rkd_jax.errors import ConfigError
from rkd_jax.evaluation.backdoor import defence_effectiveness

LEAST = 0.5  # ASR without a defence from which on a defence can show something.


def table(workdirs: Iterable[str | pathlib.Path]) -> dict[str, dict[str, Any]]:
  """Rows of finished comparisons side by side.

  Args:
    workdirs: directories that `rkd compare` was given, of poisoned teachers.

  Returns:
    {row: {'<trigger> ACC', '<trigger> ASR': summaries over seeds, 'mean DER': float}}.
    The DER of a defended student is against the student of the same recipe without
    `detox` and the same seed. It counts where that one's ASR is at least `LEAST`:
    where the backdoor does not pass, nothing was defended. The mean is over seeds, then
    over the triggers that count.

  Raises:
    ConfigError: no comparison there, or one without an ASR.
  """
  rows, gains = {}, {}
  for workdir in map(pathlib.Path, workdirs):
    trigger, config, found = _read(workdir)
    title = trigger if not any(f'{trigger} ACC' in row for row in rows.values()) else (
        workdir.name)
    for name, cells in found.items():
      # Clean teachers and their students have no trigger, but an accuracy to compare.
      rows.setdefault(name, {}).update({
          f'{title} ACC': cells['clean'], f'{title} ASR': cells.get('asr')})
    for name, base in undefended(config.compare.students).items():
      before, after = found[base], found[name]
      if before['asr']['mean'] >= LEAST:
        gains.setdefault(name, []).append([
            defence_effectiveness(*({'clean': clean, 'asr': asr} for clean, asr in pair))
            for pair in zip(_seeds(before), _seeds(after), strict=True)])
  for name, of_triggers in gains.items():
    rows[name]['mean DER'] = statistics.fmean(map(statistics.fmean, of_triggers))
  return rows


def undefended(students) -> dict[str, str]:
  """{name of a defended student: name of the one of the same recipe without}."""
  plain, found = {}, {}
  for name, changes in students:
    if not _method(changes):
      plain.setdefault(_recipe(changes), name)
  for name, changes in students:
    if _method(changes) and _recipe(changes) in plain:
      found[name] = plain[_recipe(changes)]
  return found


def _method(changes: Mapping[str, Any]) -> str:
  return changes.get('detox', {}).get('method', '')


def _recipe(changes):
  rest = {key: value for key, value in dict(changes).items() if key != 'detox'}
  return json.dumps(rest, sort_keys=True, default=dict)


def _seeds(cells):
  return zip(cells['clean']['values'], cells['asr']['values'], strict=True)


def _read(workdir):
  """(trigger, config, rows) of a comparison."""
  table = workdir / 'tables' / 'comparison.json'
  for needed in (table, workdir / configuration.FILE):
    if not needed.exists():
      raise ConfigError(f'{workdir} holds no finished comparison ({needed} is missing); '
                        '`rkd compare` makes one')
  rows = files.read_json(table, '`rkd compare` makes it again')['rows']
  config = configuration.read(workdir)
  if not any('asr' in cells for cells in rows.values()):
    raise ConfigError(f'{workdir}: none of its teachers has a known backdoor, so there '
                      'is no ASR')
  overrides = configuration.to_dict(config)['teachers']['poisoned']['overrides']
  # A poisoned teacher whose data were clean was made by a method with its own trigger.
  name = overrides.get('backdoor', {}).get('trigger') or overrides.get('method')
  return name or workdir.name, config, rows
