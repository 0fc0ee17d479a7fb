"""A function in real arithmetic: its jaxpr, interpreted by NumPy.

Numbers are `np.longdouble`: on x86 a mantissa of 64 bits and exponents to 1e4932, so
that nothing over- or underflows that a float32 function can be made of. A number that
is undefined or beyond that range (1 / 0, log(-1)) is NaN from there on, also in what
is selected or compared by it.
"""

import jax
import jax.extend.core as jex
import numpy as np
import scipy.special
from jax import lax

from rkd_jax.bounds.tracing import scan_counts

Real = np.longdouble


def evaluate(closed, *args):
  """The results of a `jax.make_jaxpr` at some arguments, as float arrays."""
  with np.errstate(all='ignore'):
    return [np.asarray(r, Real) for r in _run(closed.jaxpr, closed.consts, args)]


def _run(jaxpr, consts, args):
  env = dict(zip([*jaxpr.constvars, *jaxpr.invars], map(_real, [*consts, *args])))
  read = lambda v: (_real(np.asarray(v.val, v.aval.dtype))
                    if isinstance(v, jex.Literal) else env[v])
  for eqn in jaxpr.eqns:
    results = _equation(eqn, [read(v) for v in eqn.invars])
    env.update(zip(eqn.outvars, results))
  return [read(v) for v in jaxpr.outvars]


def _real(value):
  value = value if isinstance(value, np.ndarray) else np.asarray(value)
  floats = jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
  return value.astype(Real) if floats else value


def _equation(eqn, inputs):
  name, params = eqn.primitive.name, eqn.params
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in params and name not in ('scan', 'while'):
      inner = params[key]
      if isinstance(inner, jex.ClosedJaxpr):
        return _run(inner.jaxpr, inner.consts, inputs)
      return _run(inner, (), inputs)
  if not any(i.dtype == Real for i in inputs):
    return _plain(eqn, inputs)
  if name not in _RULES:
    if name in _MOVES:
      return _moved(eqn, inputs)
    raise NotImplementedError(f'the reference does not know {name}: {eqn}')
  results = _RULES[name](*inputs, **params)
  results = results if isinstance(results, (list, tuple)) else [results]
  if name not in _EXACT and all(np.isfinite(i).all() for i in inputs):
    results = [np.where(np.isinf(r), np.nan, r) if r.dtype == Real else r
               for r in results]
  return [np.asarray(r) for r in results]


def _plain(eqn, inputs):
  """Whole numbers and truth values alone; a float of them is a `Real`."""
  params = eqn.primitive.get_bind_params(eqn.params)
  found = eqn.primitive.bind(*inputs, **params)
  found = found if eqn.primitive.multiple_results else [found]
  return [_real(np.asarray(f)) for f in found]


# Results that are operands, each entry.
_MOVES = frozenset({
    'slice', 'pad', 'gather',
    'dynamic_slice', 'dynamic_update_slice', 'tile', 'stack',
    'unstack', 'expand_dims'})


def _moved(eqn, inputs):
  """Whatever moves numbers moves their places as well; places are whole numbers."""
  places, numbers, start = [], [], 0
  for value in inputs:
    if value.dtype == Real:
      places.append(np.arange(start, start + value.size,
                              dtype=np.int32).reshape(value.shape))
      numbers.append(value.ravel())
      start += value.size
    else:
      places.append(value)
  params = eqn.primitive.get_bind_params(eqn.params)
  found = eqn.primitive.bind(*places, **(params | _filled(params)))
  found = found if eqn.primitive.multiple_results else [found]
  numbers = np.concatenate(numbers)
  return [np.where((index := np.asarray(f)) >= 0, numbers[index], 0) for f in found]


def _filled(params):
  """Outside of the array `gather` fills in NaN by default: place -1, then 0."""
  return {'fill_value': -1} if 'fill_value' in params else {}


def _elementwise(function):
  return lambda *values, **_: function(*values)


def _logistic(x):
  low = np.exp(-np.abs(x))
  return np.where(x < 0, low, 1) / (1 + low)


def _special(function):
  """A function of SciPy's, which are of float64; their errors are of 1e-16."""
  return _elementwise(lambda x: function(x.astype(np.float64)).astype(Real))


def _compare(function):
  """A truth value, or NaN: where an operand is, nothing is true or false."""
  def rule(a, b, **_):
    unknown = np.isnan(a) | np.isnan(b)
    found = function(a, b)
    return np.where(unknown, Real('nan'), found) if unknown.any() else found
  return rule


def _logic(function, real):
  def rule(*values, **_):
    return (real if any(v.dtype == Real for v in values) else function)(*values)
  return rule


def _select(which, *cases, **_):
  if which.dtype != Real:
    return np.choose(which.astype(int), cases)
  known = np.choose(np.nan_to_num(which).astype(int), cases)
  return np.where(np.isnan(which), np.nan, known)


def _convert(x, new_dtype, **_):
  if x.dtype == Real and not jax.numpy.issubdtype(new_dtype, jax.numpy.floating):
    if np.isnan(x).any():  # A truth value that is unknown.
      return x
    return x != 0 if np.dtype(new_dtype).kind == 'b' else np.trunc(x).astype(new_dtype)
  return x.astype(Real)


def _power(x, y, **_):
  return np.where(y == 0, 1, np.power(x, y.astype(Real)))


def _dot(a, b, dimension_numbers, **_):
  (left, right), (batch_a, batch_b) = dimension_numbers
  names = iter('abcdefghijklmnopqrstuvwxyz')
  of_a = [next(names) for _ in a.shape]
  of_b = [next(names) for _ in b.shape]
  for i, j in [*zip(left, right), *zip(batch_a, batch_b)]:
    of_b[j] = of_a[i]
  out = ([of_a[i] for i in batch_a]
         + [n for i, n in enumerate(of_a) if i not in (*left, *batch_a)]
         + [n for i, n in enumerate(of_b) if i not in (*right, *batch_b)])
  return np.einsum(f'{"".join(of_a)},{"".join(of_b)}->{"".join(out)}',
                   a.astype(Real), b.astype(Real))


def _windows(x, window, strides, padding, dilation, fill):
  """[*out, *window]: what each window sees."""
  x = np.pad(x, [(max(low, 0), max(high, 0)) for low, high in padding],
             constant_values=fill)
  spans = [(w - 1) * d + 1 for w, d in zip(window, dilation)]
  seen = np.lib.stride_tricks.sliding_window_view(x, spans)
  return seen[(*(slice(None, None, s) for s in strides),
               *(slice(None, None, d) for d in dilation))]


def _conv(x, kernel, window_strides, padding, lhs_dilation, rhs_dilation,
          dimension_numbers, feature_group_count, batch_group_count, **_):
  if set(lhs_dilation) != {1} or batch_group_count != 1:
    raise NotImplementedError('a convolution with a dilated input')
  numbers = dimension_numbers
  x, kernel = x.transpose(numbers.lhs_spec), kernel.transpose(numbers.rhs_spec)
  seen = _windows(x, (1, 1, *kernel.shape[2:]), (1, 1, *window_strides),
                  ((0, 0), (0, 0), *padding), (1, 1, *rhs_dilation), 0)
  space = len(window_strides)
  # [batch, groups, channels, *out, *window] and [groups, out channels, channels, ...].
  seen = seen.reshape(x.shape[0], feature_group_count, -1, *seen.shape[2:2 + space],
                      *kernel.shape[2:])
  kernel = kernel.reshape(feature_group_count, -1, *kernel.shape[1:])
  at, of = 'uvw'[:space], 'xyz'[:space]
  out = np.einsum(f'bgi{at}{of},goi{of}->bgo{at}', seen, kernel)
  out = out.reshape(x.shape[0], -1, *out.shape[3:])
  return out.transpose(np.argsort(numbers.out_spec))


def _window_reduction(function, fill):
  def rule(x, window_dimensions, window_strides, padding, window_dilation,
           base_dilation=(), **_):
    if set(base_dilation) - {1}:
      raise NotImplementedError('a window over a dilated input')
    seen = _windows(x, window_dimensions, window_strides, padding, window_dilation,
                    fill)
    return function(seen, axis=tuple(range(x.ndim, 2 * x.ndim)))
  return rule


def _reduction(function):
  return lambda x, axes, **_: function(x, axis=tuple(axes))


def _any_reduction(x, start, jaxpr, dimensions, **_):
  name = jaxpr.eqns[0].primitive.name
  function = {'max': np.max, 'min': np.min, 'add': np.sum, 'mul': np.prod}[name]
  return function(x, axis=tuple(dimensions), initial=start)


def _cumulative(function):
  def rule(x, axis, reverse, **_):
    x = np.flip(x, axis) if reverse else x
    found = function(x, axis=axis)
    return np.flip(found, axis) if reverse else found
  return rule


def _poisoned(x, axis):
  """x with NaN all along `axis` where there is one."""
  return np.where(np.isnan(x).any(axis=axis, keepdims=True), np.nan, x)


def _sort(*values, dimension, num_keys, **_):
  key = _poisoned(values[0], dimension)
  order = np.argsort(key, axis=dimension, kind='stable')
  return [np.take_along_axis(v, order, dimension) for v in (key, *values[1:])]


def _top_k(x, k, **params):
  axis = params.get('axis', -1)
  x = _poisoned(x, axis)
  order = np.argsort(-x, axis=axis, kind='stable')
  order = np.take(order, np.arange(k), axis=axis)
  return [np.take_along_axis(x, order, axis), order.astype(np.int32)]


def _scan(*args, jaxpr, length, reverse, **params):
  num_consts, num_carry = scan_counts(params)
  consts, carry = args[:num_consts], list(args[num_consts:num_consts + num_carry])
  xs, ys = args[num_consts + num_carry:], []
  for step in range(length)[::-1] if reverse else range(length):
    out = _run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *(x[step] for x in xs)])
    carry = out[:num_carry]
    ys.append(out[num_carry:])
  return [*carry, *(np.stack(y) for y in zip(*(ys[::-1] if reverse else ys)))]


def _while(*args, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts, **_):
  of_cond, of_body = args[:cond_nconsts], args[cond_nconsts:cond_nconsts + body_nconsts]
  carry = args[cond_nconsts + body_nconsts:]
  while _run(cond_jaxpr.jaxpr, cond_jaxpr.consts, [*of_cond, *carry])[0]:
    carry = _run(body_jaxpr.jaxpr, body_jaxpr.consts, [*of_body, *carry])
  return list(carry)


def _scatter(combine):
  def rule(x, indices, updates, dimension_numbers, mode, **_):
    """One update after the other, each to where JAX puts a 1 in its place."""
    one = np.eye(updates.size, dtype=np.int32).reshape(-1, *updates.shape)
    for number, value in enumerate(updates.ravel()):
      hit = lax.scatter_add(np.zeros(x.shape, np.int32), indices, one[number],
                            dimension_numbers, mode=mode)
      x = np.where(np.asarray(hit) > 0, combine(x, value), x)
    return x
  return rule


_RULES = {
    'abs': _elementwise(np.abs), 'neg': _elementwise(np.negative),
    'add': _elementwise(np.add), 'add_any': _elementwise(np.add),
    'sub': _elementwise(np.subtract), 'mul': _elementwise(np.multiply),
    'div': _elementwise(np.divide), 'rem': _elementwise(np.fmod),
    'max': _elementwise(np.maximum), 'min': _elementwise(np.minimum),
    'pow': _power, 'integer_pow': lambda x, y: _power(x, np.asarray(y)),
    'square': _elementwise(np.square), 'one_minus_square': lambda x, **_: 1 - x * x,
    'sqrt': _elementwise(np.sqrt),
    'rsqrt': _elementwise(lambda x: 1 / np.sqrt(x)), 'cbrt': _elementwise(np.cbrt),
    'exp': _elementwise(np.exp), 'exp2': _elementwise(np.exp2),
    'expm1': _elementwise(np.expm1), 'log': _elementwise(np.log),
    'log1p': _elementwise(np.log1p), 'logistic': _elementwise(_logistic),
    'tanh': _elementwise(np.tanh), 'sin': _elementwise(np.sin),
    'cos': _elementwise(np.cos), 'tan': _elementwise(np.tan),
    'sinh': _elementwise(np.sinh), 'cosh': _elementwise(np.cosh),
    'asinh': _elementwise(np.arcsinh), 'acosh': _elementwise(np.arccosh),
    'atanh': _elementwise(np.arctanh), 'asin': _elementwise(np.arcsin),
    'acos': _elementwise(np.arccos), 'atan': _elementwise(np.arctan),
    'atan2': _elementwise(np.arctan2),
    'erf': _special(scipy.special.erf), 'erfc': _special(scipy.special.erfc),
    'sign': _elementwise(np.sign), 'floor': _elementwise(np.floor),
    'ceil': _elementwise(np.ceil),
    'round': lambda x, rounding_method: (
        np.rint(x) if rounding_method == lax.RoundingMethod.TO_NEAREST_EVEN
        else np.copysign(np.floor(np.abs(x) + Real(0.5)), x)),
    'clamp': _elementwise(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    'gt': _compare(np.greater), 'ge': _compare(np.greater_equal),
    'lt': _compare(np.less), 'le': _compare(np.less_equal),
    'eq': _compare(np.equal), 'ne': _compare(np.not_equal),
    'is_finite': _elementwise(lambda x: ~np.isinf(x)),  # NaN stays one elsewhere.
    'not': _logic(np.logical_not, lambda x: 1 - x),
    'and': _logic(np.bitwise_and, lambda a, b: np.minimum(a.astype(Real), b)),
    'or': _logic(np.bitwise_or, lambda a, b: np.maximum(a.astype(Real), b)),
    'select_n': _select, 'convert_element_type': _convert,
    'reduce_precision': lambda x, **_: x,
    'reshape': lambda x, new_sizes, dimensions, **_: x.reshape(new_sizes),
    'transpose': lambda x, permutation: x.transpose(permutation),
    'squeeze': lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    'broadcast_in_dim': lambda x, shape, broadcast_dimensions, **_: np.broadcast_to(
        x.reshape([x.shape[broadcast_dimensions.index(d)]
                   if d in broadcast_dimensions else 1
                   for d in range(len(shape))]), shape),
    'concatenate': lambda *values, dimension: np.concatenate(values, dimension),
    'rev': lambda x, dimensions: np.flip(x, dimensions),
    'dot_general': _dot, 'conv_general_dilated': _conv,
    'reduce_sum': _reduction(np.sum), 'reduce_max': _reduction(np.max),
    'reduce_min': _reduction(np.min), 'reduce_prod': _reduction(np.prod),
    'reduce': _any_reduction,
    'argmax': lambda x, axes, **_: np.argmax(x, axes[0]).astype(np.int32),
    'argmin': lambda x, axes, **_: np.argmin(x, axes[0]).astype(np.int32),
    'cumsum': _cumulative(np.cumsum), 'cumprod': _cumulative(np.cumprod),
    'cummax': _cumulative(np.maximum.accumulate),
    'cummin': _cumulative(np.minimum.accumulate),
    'reduce_window_sum': _window_reduction(np.sum, 0),
    'reduce_window_max': _window_reduction(np.max, -np.inf),
    'reduce_window_min': _window_reduction(np.min, np.inf),
    'sort': _sort, 'top_k': _top_k, 'scan': _scan, 'while': _while,
    'scatter': _scatter(lambda old, new: new), 'scatter-add': _scatter(np.add),
    'scatter_add': _scatter(np.add), 'scatter-mul': _scatter(np.multiply),
    'cond': lambda index, *args, branches, **_: _run(
        branches[int(index)].jaxpr, branches[int(index)].consts, args),
    **{name: lambda x, **_: x for name in (
        'copy', 'copy_p', 'stop_gradient', 'name', 'optimization_barrier')},
    'split': lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
}
# Those through which infinite constants go unharmed.
_EXACT = frozenset({'select_n', 'convert_element_type', 'scan', 'while', 'cond'})
