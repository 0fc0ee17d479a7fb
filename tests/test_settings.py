"""Declarations: what a value becomes, what is idle, and the listing without JAX."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rkd_jax import listing, settings
from rkd_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Example:
  """Settings to try."""

  rate: float = settings.positive(0.5, 'A rate.')
  steps: int = settings.count(3, 'Steps.', least=2)
  mode: str = settings.one_of('a', ('a', 'b'), 'A mode.')
  extra: float = settings.share(0.1, 'Only in mode b.', when={'mode': ('b',)})

  def check(self):
    if self.rate > self.steps:
      raise ConfigError('rate must be at most steps')


@pytest.mark.parametrize('given, wanted', [
    ({'rate': 2}, 2.0), ({'rate': np.float32(0.25)}, 0.25), ({'rate': np.int64(1)}, 1.0),
    ({'rate': np.array(0.75)}, 0.75), ({'steps': 400.0}, 400), ({'steps': np.int8(7)}, 7),
    ({'steps': np.float64(8)}, 8), ({'mode': np.str_('b')}, 'b')])
def test_values_take_the_type_of_their_setting(given, wanted):
  (name, _), = given.items()
  made = settings.build(Example, given, 'example')
  got = getattr(made, name)
  assert got == wanted and type(got) is type(wanted)
  others = {**settings.defaults(Example), name: wanted}
  assert dataclasses.asdict(made) == others
  assert settings.build(Example, made, 'example') == made


@pytest.mark.parametrize('given, words', [
    ({'rat': 1}, "unknown setting of example 'rat': did you mean 'rate'"),
    ({'rate': True}, 'example.rate must be a number > 0, got True'),
    ({'steps': 2.5}, 'example.steps must be a whole number >= 2, got 2.5'),
    ({'steps': 1}, 'example.steps must be >= 2, got 1'),
    ({'extra': 7}, r'example.extra must be in \[0, 1\], got 7'),
    ({'mode': 'c'}, "example.mode: unknown value 'c'"),
    ({'rate': 9}, 'example: rate must be at most steps')])
def test_messages(given, words):
  with pytest.raises(ConfigError, match=words):
    settings.build(Example, given, 'example')


def test_what_is_idle():
  assert settings.idle(Example, {**settings.defaults(Example)}) == {'extra': 'mode'}
  assert settings.idle(Example, {**settings.defaults(Example), 'mode': 'b'}) == {}


def test_the_listing_has_every_setting_of_a_method():
  shown = '\n'.join(listing.lines(['ciard', 'masks', 'badnets', 'attack']))
  for text in ('config.ciard: CIARD', 'push_temperature = 5.0', 'a number > 0. ',
               'config.detox.options of masks', 'cap = 0.05', 'a number in [0, 1]. ',
               'config.backdoor.options of badnets', 'size = 3', 'config.attack: '):
    assert text in shown, text
  with pytest.raises(ConfigError, match="did you mean 'ciard'"):
    list(listing.lines(['ciardd']))


def test_help_and_the_listing_do_without_jax():
  code = ('import sys; from rkd_jax import cli; assert cli.main(["config"]) == 0; '
          'assert "jax" not in sys.modules')
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert 'config.teachers.clean' in done.stdout and 'epochs = 10' in done.stdout
