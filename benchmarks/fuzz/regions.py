"""Random input sets at all scales, and points that are certainly inside of them."""

import dataclasses

import numpy as np

from rkd_jax import bounds
from rkd_jax.bounds.sets import InputSet

KINDS = ('box', 'linf_ball', 'l2_ball', 'l1_ball')
SPECIAL = (0.0, 1.0, -1.0, 0.5, 6.0, -3.0, 1.2e-38, 88.5, -104.0, np.pi / 2)
Real = np.longdouble


@dataclasses.dataclass(frozen=True)
class Region:
  """What the user asks for, in float64: a set for each example.

  Attributes:
    kind: the function of `bounds` that makes it.
    center: float64[B, ...]; None for a box.
    eps: float64[B]; None for a box.
    lower, upper: float64[B, ...], may be infinite.
  """

  kind: str
  center: np.ndarray | None
  eps: np.ndarray | None
  lower: np.ndarray
  upper: np.ndarray

  def build(self) -> InputSet:
    make = getattr(bounds, self.kind)
    if self.kind == 'box':
      return make(self.lower, self.upper)
    return make(self.center, self.eps, lower=self.lower, upper=self.upper)

  def source(self, example: int) -> str:
    part = lambda a: f'np.array({literal(a[example:example + 1])})'
    ends = part(self.lower), part(self.upper)
    if self.kind == 'box':
      return f'B.box({ends[0]}, {ends[1]})'
    free = np.isinf(self.lower[example]).all() and np.isinf(self.upper[example]).all()
    cut = '' if free else (
        f', lower={ends[0]}, upper={ends[1]}')
    return f'B.{self.kind}({part(self.center)}, {part(self.eps)}{cut})'

  def contains(self, x: np.ndarray) -> np.ndarray:
    """Whether each point of [S, B, ...] is certainly a member: bool[S, B]."""
    axes = tuple(range(2, x.ndim))
    inside = ((x >= self.lower) & (x <= self.upper)).all(axes)
    if self.kind == 'box':
      return inside
    offset, eps = np.abs(x - self.center.astype(Real)), self.eps.astype(Real)
    # The differences and their norm are off by a few units of the last place.
    norm = {'linf_ball': lambda: offset.max(axes), 'l1_ball': lambda: offset.sum(axes),
            'l2_ball': lambda: np.sqrt(np.square(offset).sum(axes))}[self.kind]()
    return inside & ((norm * (1 + Real(1e-17)) <= eps) | (norm == 0))

  def hull(self):
    if self.kind == 'box':
      return self.lower.astype(Real), self.upper.astype(Real)
    eps = self.eps.astype(Real).reshape(-1, *[1] * (self.center.ndim - 1))
    return (np.maximum(self.lower, self.center - eps),
            np.minimum(self.upper, self.center + eps))

  def inner(self):
    """A member [B, ...]."""
    if self.kind != 'box':
      return self.center.astype(Real)
    return np.where(np.isfinite(self.lower), self.lower, np.where(
        np.isfinite(self.upper), self.upper, 0)).astype(Real)


def literal(array: np.ndarray) -> str:
  """Python text of an array, with every digit."""
  if array.ndim:
    return f'[{", ".join(map(literal, array))}]'
  return {np.inf: 'np.inf', -np.inf: '-np.inf'}.get(float(array), str(array))


def draw(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Region:
  """A region for `shape` [B, ...]; half of them as people have them, half extreme."""
  parts = [_one(rng, kind, shape[1:]) for _ in range(shape[0])]
  return Region(kind, *(None if part[0] is None else np.stack(part)
                        for part in zip(*parts)))


def _one(rng, kind, shape):
  scale = 1.0 if rng.uniform() < 0.6 else 10**rng.uniform(-37, 37)
  each = 10**rng.uniform(-6, 6, shape) if rng.uniform() < 0.15 else 1.0
  center = _float(rng, scale * each * rng.normal(size=shape))
  special = rng.uniform(size=shape) < rng.choice([0, 0, 0.3, 1])
  center = np.where(special, rng.choice(SPECIAL, size=shape), center)
  eps = rng.choice([
      scale * 10**rng.uniform(-3, 0.5), scale * 10**rng.uniform(-3, 0.5),
      scale * 10**rng.uniform(-10, 2), 10**rng.uniform(-38, 38), 0.0, np.inf],
      p=[0.35, 0.2, 0.15, 0.15, 0.12, 0.03])
  eps = np.abs(_float(rng, eps))
  if kind == 'box':
    share = rng.choice([1, 1, 0.1, 0], size=(2, *shape))
    width = np.where(share > 0, eps * np.maximum(share, 0.1), 0)
    lower, upper = center - width[0], center + width[1]
    lower = _float(rng, np.where(rng.uniform(size=shape) < 0.02, -np.inf, lower))
    upper = _float(rng, np.where(rng.uniform(size=shape) < 0.02, np.inf, upper))
    return None, None, lower, np.maximum(lower, upper)
  lower, upper = np.full(shape, -np.inf), np.full(shape, np.inf)
  if rng.uniform() < 0.4 and np.isfinite(eps):
    free = rng.uniform(size=(2, *shape)) < 0.3
    cut = _float(rng, eps * rng.choice([0, 0.1, 0.5, 2], size=(2, *shape)))
    lower = np.where(free[0], -np.inf, center - np.abs(cut[0]))
    upper = np.where(free[1], np.inf, center + np.abs(cut[1]))
  return center, eps, lower, upper


def _float(rng, value):
  """Half of the time as float32 has it, so that nothing is rounded at the door."""
  value = np.clip(value, -3e38, 3e38) if np.isfinite(value).all() else value
  if rng.uniform() < 0.5:
    return np.asarray(value, np.float64)
  return np.asarray(value, np.float32).astype(np.float64)


def points(rng: np.random.Generator, region: Region, count: int) -> np.ndarray:
  """Members [count, B, ...]: the centre, corners, the sphere, the inside, kinks."""
  low, high = region.hull()
  inner = region.inner()
  shape = (count, *low.shape)
  far = 10**rng.uniform(-38, 60, shape)  # No float32 is the end of an infinite set.
  low = np.where(np.isfinite(low), low, np.minimum(inner, high) - far)
  high = np.where(np.isfinite(high), high, np.maximum(inner, low) + far)
  where = rng.uniform(size=shape)
  corner = rng.uniform(size=(count, *[1] * (len(shape) - 1))) < 0.4
  where = np.where(corner, np.round(where), where)
  x = low + where * (high - low)
  x = np.where(where == 1, high, np.where(where == 0, low, x))
  x = np.where(rng.uniform(size=shape) < 0.05, rng.choice(SPECIAL, size=shape), x)
  if region.kind in ('l1_ball', 'l2_ball'):
    x = _onto(rng, region, x, inner)
  near = rng.uniform(size=(count, *[1] * (len(shape) - 1))) < 0.15
  x = np.where(near, inner + (x - inner) * 10**rng.uniform(-12, 0, shape), x)
  x[0] = inner
  return admitted(region, x)


def _onto(rng, region, x, inner):
  """Most points to the sphere, along few axes or many; the box cuts what it cuts."""
  count, axes = len(x), tuple(range(2, x.ndim))
  keep = rng.uniform(size=x.shape) < rng.choice([0.2, 0.6, 1], size=(count, *[1] * (
      x.ndim - 1)))
  offset = np.where(keep, x - inner, 0)
  direction = rng.normal(size=x.shape) * keep
  whole = region.eps.astype(Real).reshape(-1, *[1] * (x.ndim - 2))
  offset = np.where(np.isfinite(whole), direction.astype(Real), offset)
  norm = (np.abs(offset).sum(axes, keepdims=True) if region.kind == 'l1_ball'
          else np.sqrt(np.square(offset).sum(axes, keepdims=True)))
  size = np.where(rng.uniform(size=(count, *[1] * (x.ndim - 1))) < 0.7,
                  1 - Real(1e-15), rng.uniform(size=(count, *[1] * (x.ndim - 1))))
  scale = np.where(np.isfinite(whole), whole, 0) * size
  scaled = offset * (scale / np.where(norm > 0, norm, 1))
  offset = np.where(np.isfinite(whole), scaled, offset)
  return np.clip(inner + offset, region.lower, region.upper)


def closer(rng: np.random.Generator, region: Region, x: np.ndarray, best: np.ndarray):
  """Between the best point [B, ...] and points [S, B, ...]; a search in the set."""
  shape = (len(x), *[1] * (x.ndim - 1))
  step = 10**rng.uniform(-8, 0, shape) * (rng.uniform(size=x.shape) < 0.6)
  return admitted(region, best + step * (x - best))


def admitted(region, x):
  """The points that are certainly members; a member for each of the others."""
  x = np.clip(x, *region.hull())
  inside = region.contains(x)
  inside = inside.reshape(*inside.shape, *[1] * (x.ndim - 2))
  return np.where(inside, x, region.inner())
