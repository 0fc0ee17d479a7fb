"""The constraints of a small ReLU network, as one sparse program for HiGHS."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from rkd_jax.bounds import linear
from rkd_jax.bounds.graph import Ref, unsupported
from rkd_jax.bounds.sets import L1Ball
from rkd_jax.errors import ConfigError

_NEAR = 1e-9  # HiGHS drops smaller coefficients, so such a binary would mean nothing.
_CHUNK = 2**22  # Numbers in the largest dense block of coefficients.


def segments(graph):
  """Linear value -> source -> sparse matrix; constants left out.

  The sources are all values but those that one linear equation alone reads.
  """
  widest, found = max(math.prod(shape) for shape in graph.shapes.values()), {}
  for node in graph.nodes:
    if not node.linear or node.out in graph.merged:
      continue
    stop = frozenset(graph.shapes) - graph.merged - {node.out}
    parts = {}
    for part, rows in _unit_rows(np.arange(math.prod(node.shape)), node.shape, widest):
      ends, _ = linear.backward(
          graph, {node.out: rows}, linear.NOTHING, stop=stop)
      for i, end in ends.items():
        parts.setdefault(i, []).append(_sparse(end, len(part)))
    found[node.out] = {i: scipy.sparse.vstack(part) for i, part in parts.items()}
  return found


def _unit_rows(entries, shape, widest):
  """(the next entries, rows [length, *shape] with a 1 at each and more of zeros).

  In chunks of one length, so that what is compiled for one serves them all.
  """
  size = math.prod(shape)
  length = min(size, max(1, _CHUNK // widest))
  for start in range(0, len(entries), length):
    part = entries[start:start + length]
    rows = np.zeros((length, size))
    rows[np.arange(len(part)), part] = 1
    yield part, jnp.asarray(rows.reshape(length, *shape))


def _sparse(rows, count):
  return scipy.sparse.csr_array(np.asarray(rows[:count]).reshape(count, -1))


class Program:
  """low <= A x <= high, lower <= x <= upper, and the `whole` entries of x are whole.

  Rows either are equations up to rounding, low = high, or have low = -inf.
  """

  def __init__(self):
    self.lower, self.upper, self.low, self.high = (np.zeros(0) for _ in range(4))
    self.whole = np.zeros(0, bool)
    self._entries = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]

  def variables(self, lower, upper, whole=False):
    """Adds some; their numbers, of the shape of the bounds."""
    lower, upper = np.broadcast_arrays(lower, upper)
    first = len(self.lower)
    self.lower, self.upper = np.append(self.lower, lower), np.append(self.upper, upper)
    self.whole = np.append(self.whole, np.full(lower.size, whole))
    return np.arange(first, len(self.lower)).reshape(lower.shape)

  def constrain(self, terms, low, high):
    """Adds rows low <= sum of terms <= high.

    Args:
      terms: (columns, coefficients) each: [n] columns with as many coefficients or
        one number; [n, k] columns with one; or [k] columns and a sparse matrix [n, k].
      low, high: [n], or one number.
    """
    first, count = len(self.low), 0
    for columns, values in terms:
      if scipy.sparse.issparse(values):
        part = values.tocoo()
        count, row, columns, values = (
            part.shape[0], part.row, columns[part.col], part.data)
      else:
        count, row = len(columns), np.indices(columns.shape)[0].ravel()
      self._entries.append((row + first, columns.ravel(),
                            np.broadcast_to(values, columns.shape).ravel()))
    self.low = np.append(self.low, np.broadcast_to(low, count))
    self.high = np.append(self.high, np.broadcast_to(high, count))

  @functools.cached_property
  def matrix(self):
    """A, once all rows are there."""
    row, column, data = (np.concatenate(part) for part in zip(*self._entries))
    return scipy.sparse.csr_array(
        (data, (row, column)), shape=(len(self.low), len(self.lower)))

  @property
  def middle(self):
    return (self.low + self.high) / 2

  @property
  def largest(self):
    return np.maximum(np.abs(self.lower), np.abs(self.upper))


def build(graph, matrices, ball, bounds, facts, *, whole):
  """The program of one example, and value -> the numbers of its variables [N]."""
  program = Program()
  columns = {i: program.variables(*(edge.ravel() for edge in bounds[i]))
             for i in sorted(graph.shapes) if i not in graph.merged}
  if not np.isfinite([program.lower, program.upper]).all():
    raise ConfigError('lp and milp need finite bounds of every neuron, but crown '
                      'finds infinite ones: is the input set too large?')
  if isinstance(ball, L1Ball):
    center, x = ball.center.ravel(), columns[0]
    far = program.variables(0, np.full(x.shape, float(ball.eps)))
    program.constrain([(x, 1), (far, -1)], -np.inf, center)
    program.constrain([(x, -1), (far, -1)], -np.inf, -center)
    program.constrain([(far[None], 1)], -np.inf, float(ball.eps))
  for node in graph.nodes:
    if node.out in matrices:
      # The offsets also enclose what rounding did to the matrix.
      low, high = facts.offsets.get(node.out, (np.zeros(node.shape),) * 2)
      lost = facts.losses.get(node.out, 0.0)
      program.constrain([(columns[node.out], 1), *(
          (columns[i], -part) for i, part in matrices[node.out].items())],
                        low.ravel() - lost, high.ravel() + lost)
    elif not node.linear:
      _maximum(program, node, graph, facts, columns, whole)
  return program, columns


def pieces(node, graph):
  """(s, pieces): s * node is, entry by entry, the greatest of some pieces.

  A piece, slope * operand[index] + constant, is (operand position, index int[N],
  slope, constant float[N]).
  """
  size, sign = math.prod(node.shape), -1.0 if 'min' in node.name else 1.0
  spread = lambda array: np.broadcast_to(array, node.shape).ravel()

  def piece(position, slope, index=None, constant=0.0):
    shape = graph.shapes[node.operands[position]]
    if index is None:  # Axes of length 1 may be broadcast.
      index = spread(np.arange(math.prod(shape)).reshape(shape))
    return position, index, slope, spread(np.asarray(constant, float))

  if node.name in ('max', 'min'):
    bounded = [isinstance(i, Ref) for i in node.inputs]
    return sign, [
        piece(sum(bounded[:k]), sign) if bounded[k]
        else piece(0, 0.0, constant=sign * np.asarray(i))
        for k, i in enumerate(node.inputs)]
  if node.name == 'abs':
    return 1.0, [piece(0, 1.0), piece(0, -1.0)]
  if node.name == 'leaky_relu':
    slope = float(node.params['slope'])
    sign = 1.0 if slope <= 1 else -1.0
    return sign, [piece(0, sign), piece(0, sign * slope)]
  if node.name in ('reduce_max', 'reduce_min'):
    shape, axes = graph.shapes[node.operands[0]], node.params['axes']
    index = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axes,
                        range(-len(axes), 0)).reshape(size, -1)
    return sign, [piece(0, sign, index=column) for column in index.T]
  raise unsupported(node, 'encoding as a linear program')


def _maximum(program, node, graph, facts, columns, whole):
  """Rows of a maximum of affine pieces, and binaries if `whole`."""
  sign, found = pieces(node, graph)
  position, index, slope, constant = zip(*found)
  of = np.stack([columns[node.operands[p]][i] for p, i in zip(position, index)])
  slope = np.broadcast_to(np.array(slope)[:, None], of.shape)
  constant, out = np.stack(constant), columns[node.out]
  low, high = np.sort([slope * program.lower[of], slope * program.upper[of]], axis=0)
  rounded = ~np.isin(slope, (-1, 0, 1))
  low = constant + np.where(rounded, np.nextafter(low, -np.inf), low)
  high = constant + np.where(rounded, np.nextafter(high, np.inf), high)
  winner = np.argmax(low, axis=0)
  kept = high > np.max(low, axis=0)  # The others are never above the winner.
  kept[winner, np.arange(len(out))] = True
  alone = kept.sum(axis=0) == 1

  def row(k, n, low, room=0.0, extra=()):
    """low <= s y - t_k + extra <= room, for entries n."""
    program.constrain([(out[n], sign), (of[k, n], -slope[k, n]), *extra],
                      low + constant[k, n], constant[k, n] + room)

  one, several = np.flatnonzero(alone), np.flatnonzero(~alone)
  row(winner[one], one, 0.0)
  _line(program, node, graph, facts, several, sign, columns)
  for k in range(len(found)):
    n = several[kept[k, several]]
    program.constrain([(of[k, n], slope[k, n]), (out[n], -sign)], -np.inf,
                      -constant[k, n])
  _choose(program, row, low, high, kept, several, whole)


def _choose(program, row, low, high, kept, several, whole):
  """s y below one of the pieces: t_k + room_k (1 - z_k), the z_k sum to 1.

  room_k is how far another piece may be above t_k. Where it is next to nothing, so
  is what the row loses without z_k.
  """
  count = len(low)
  others = [np.max(np.where(np.arange(count)[:, None] == k, -np.inf,
                            np.where(kept, high, -np.inf)), axis=0)
            for k in range(count)]
  room = np.where(kept, np.nextafter(others - low, np.inf), np.inf)
  near = room <= _NEAR
  for k in range(count):
    n = several[near[k, several]]
    row(k, n, -np.inf, room[k, n])
  if not whole:
    return
  open_ = several[~near[:, several].any(axis=0)]
  binary = np.zeros(low.shape, int)
  binary[:, open_] = program.variables(0, kept[:, open_], whole=True)
  program.constrain([(binary[:, open_].T, 1)], 1, 1)
  for k in range(count):
    n = open_[kept[k, open_]]
    row(k, n, -np.inf, room[k, n], [(binary[k, n], room[k, n])])


def _line(program, node, graph, facts, entries, sign, columns):
  """s y below the line of CROWN on that side, for some entries."""
  offset = sign * facts.offsets[node.out][0 if sign < 0 else 1].ravel()
  widest = max(math.prod(graph.shapes[i]) for i in (node.out, *node.operands))
  for part, rows in _unit_rows(entries, node.shape, widest):
    pulled = facts.slopes[node.out].pull(-sign * rows)
    program.constrain([(columns[node.out][part], sign), *(
        (columns[i], _sparse(p, len(part))) for i, p in zip(node.operands, pulled))],
                      -np.inf, offset[part])
