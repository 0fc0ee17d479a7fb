"""Random programs, as source text: a reproducer is the text itself.

A program is a chain of steps, each an expression of `x` [B, n], of a value before `e`
of the same shape, and of weights `w[i]`. What the weights are is drawn later, step by
step, with the magnitude of `x` in view: half of them bring it back to about 1, where
functions have their bends, the others take it anywhere between 1e-38 and 1e38.
"""

import dataclasses
import functools
import string

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import templates
from .templates import WIDEST

DEPTHS = (0.25, 0.25, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05)  # Of 1 to 8 steps.
LEAST, MOST = 1.2e-38, 3e38  # Normal numbers of float32.
_NAMES = {'jax': jax, 'jnp': jnp, 'lax': lax, 'np': np}


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """One expression.

  Attributes:
    text: Expression in x, e and w.
    weights: number -> (letter, shape) of the weights in it.
  """

  text: str
  weights: dict

  def __call__(self, w, x, e):
    return self._function(w, x, e)

  @functools.cached_property
  def _function(self):
    return eval(f'lambda w, x, e: {self.text}', dict(_NAMES))  # noqa: S307


@dataclasses.dataclass(frozen=True)
class Program:
  """A chain of steps.

  Attributes:
    steps: the expressions.
    shape: Shape of the input, without the batch axis.
    mixes: whether rows of the result depend on other rows of the input.
  """

  steps: tuple[Step, ...]
  shape: tuple[int, ...]
  mixes: bool = False

  def __call__(self, w, x):
    values = []
    for step in self.steps:
      values.append(x)
      x = step(w, x, before(values))
    return x

  def source(self):
    lines = ['def fn(w, x):', '  values = []']
    for step in self.steps:
      lines.append('  values.append(x)')
      if 'e' in _words(step.text):
        lines.append('  e = [v for v in values if v.shape == x.shape][0]')
      lines.append(f'  x = {step.text}')
    if not any('e = [' in line for line in lines):
      lines = [line for line in lines if 'values' not in line]
    return '\n'.join([*lines, '  return x'])


def before(values):
  """The first of the values that has the shape of the last."""
  return next(v for v in values if v.shape == values[-1].shape)


def _words(text):
  return ''.join(c if c.isalnum() or c in '_.' else ' ' for c in text).split()


def draw(rng: np.random.Generator, index: int) -> Program:
  """The program of this index, without its weights.

  Two of three are the next expression of `templates` alone.
  """
  depth, given = int(rng.choice(np.arange(1, 9), p=DEPTHS)), None
  if index % 3:
    depth, given = 1, _ALL[(index // 3 * 2 + index % 3 - 1) % len(_ALL)]
  mixes = given in templates.MIXING or (given is None and rng.uniform() < 0.02)
  image = given in templates.IMAGES or (given is None and rng.uniform() < 0.1)
  start = (3, 4, 2) if image else (int(rng.integers(2, WIDEST)),)
  x, steps, values = jax.ShapeDtypeStruct((1, *start), jnp.float32), [], []
  while len(steps) < depth:
    template = given if given and not steps else _template(
        rng, image and not steps, mixes and not given and len(steps) == depth // 2)
    step = _fill(rng, template, x.shape[-1], sum(len(s.weights) for s in steps))
    found = _shape(step, x, before([*values, x]))
    if found is None and template == given:  # For wider values.
      x = jax.ShapeDtypeStruct((1, x.shape[1] + 1), jnp.float32)
      start = x.shape[1:]
    if found is not None:
      values.append(x)
      steps.append(step)
      x = found
  return Program(tuple(steps), start, mixes)


_ALL = tuple(t for table, _ in templates.KINDS.values() for t in table) + (
    *templates.IMAGES, *templates.MIXING)


def _template(rng, image, mixes):
  tables, odds = zip(*templates.KINDS.values())
  table = tables[rng.choice(len(tables), p=np.array(odds) / sum(odds))]
  table = templates.IMAGES if image else templates.MIXING if mixes else table
  return table[rng.integers(len(table))]


def _shape(step, x, e):
  """Of the value after a step, None where it does not fit."""
  weights = {i: jax.ShapeDtypeStruct(s, jnp.float32)
             for i, (_, s) in step.weights.items()}
  try:
    out = jax.eval_shape(step, weights, x, e)
  except (ValueError, TypeError, IndexError):  # Too narrow a value, for example.
    return None
  fits = out.shape[0] == 1 and out.ndim == 2 and 0 < out.shape[1] <= 2 * WIDEST
  return out if fits else None


def _fill(rng, template, n, count):
  """The step of a template for a value of n numbers."""
  m = int(rng.integers(2, WIDEST))
  shapes = {'W': (n, m), 'Q': (n, n), 'v': (n,), 's': (), 'p': (n,),
            'b': (m,) if '$W' in template else (n,), 'K': (2, 1, 2), 'F': (2, 2, 2, 2)}
  weights, power = {}, float(rng.uniform(-38, 38))
  literal = f'{10**power:.3g}'

  class Fields(dict):
    def __missing__(self, key):
      if key in 'cli':
        return {'c': f'{np.exp(rng.normal()):.3g}', 'l': literal,
                'i': f'{min(1 / float(literal), MOST):.3g}'}[key]
      shape = shapes[key]
      number = count + len(weights)
      weights[number] = key, shape
      return f'w[{number}]'

  text = template.replace('$Wn', '$W')
  if '$o' in text:  # To few numbers, from as many as there are.
    inner = n * n if 'bij' in text else m
    shapes['o'] = (inner, 2)
  return Step(string.Template(text).substitute(Fields()), weights)


def weigh(rng: np.random.Generator, step: Step, size: float) -> dict:
  """float32 weights of a step, for values of about that size."""
  style = rng.choice(['tame', 'tame', 'tame', 'plain', 'wild'])
  gain = {'tame': 10**rng.uniform(-1.5, 1.5) / max(size, 1e-300), 'plain': 1.0,
          'wild': 10**rng.uniform(-38, 38)}[style]
  found = {}
  for number, (letter, shape) in step.weights.items():
    values = rng.normal(size=shape)
    values = np.where(rng.uniform(size=shape) < 0.1, 0, values)
    if letter == 'p':
      values = np.abs(values) + 0.1
    if letter == 'b':
      scale = rng.choice([gain * size if '@' in step.text or 'v' in [
          k for k, _ in step.weights.values()] else size, 0, 1])
    elif letter == 'p':
      scale = 10**rng.uniform(-20, 2)
    else:
      scale = gain
    values = values * min(scale, 1e300)
    values = np.sign(values) * np.minimum(np.abs(values), MOST)
    found[number] = np.where(np.abs(values) < LEAST, 0, values).astype(np.float32)
  return found
