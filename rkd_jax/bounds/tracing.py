"""From a function, by its jaxpr for one example, to its graph.

Whatever does not depend on the bounded input is evaluated at once (the constants),
calls are inlined, and what is left are nodes: each a primitive with some operands
bounded and some constant.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util

from rkd_jax.bounds import folding
from rkd_jax.bounds.graph import MOVES, PRODUCTS, SUMS, Graph, Node, Ref, is_float
from rkd_jax.errors import ConfigError, UnsupportedPrimitiveError

MAX_UNROLLED = 1_000  # Steps of a scan; each becomes equations of its own.

# Identities in real arithmetic; those to less than float32 are refused before.
_IDENTITIES = frozenset({
    'reduce_precision', 'convert_element_type', 'copy', 'copy_p', 'stop_gradient',
    'name', 'sharding_constraint', 'pvary', 'optimization_barrier', 'device_put'})
# Without rounding, as moves are.
_EXACT = frozenset({'abs', 'ceil', 'clamp', 'floor', 'max', 'min', 'neg', 'round', 'sign',
                    'sort', 'reduce_max', 'reduce_min'})
CALLS = frozenset({
    'jit', 'pjit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call',
    'custom_vjp_call_jaxpr', 'remat', 'remat2', 'checkpoint', 'custom_lin'})


def trace(fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...],
          dtype: Any) -> Graph:
  """The graph of `fn`, which maps [B, ...] to [B, K] example by example.

  Args:
    fn: pure; closed-over arrays (weights) may be traced.
    shape: of the input, with its batch axis; traced at batch size 1.
    dtype: floating point; what everything is computed in.

  Raises:
    ConfigError: `fn` does not return [1, K] for [1, ...].
    UnsupportedPrimitiveError: it needs an operation that nothing is known about.
  """
  one = jax.ShapeDtypeStruct((1, *shape[1:]), dtype)
  with jax.default_matmul_precision('highest'):
    closed = jax.make_jaxpr(fn)(one)
  avals = closed.out_avals
  if len(avals) != 1 or avals[0].ndim != 2 or avals[0].shape[0] != 1:
    seen = ', '.join(str(a.shape) for a in avals)
    raise ConfigError(
        f'the function maps {one.shape} to {seen}; bounds need one result [B, K] '
        'for [B, ...], every example on its own: does it close over an array '
        'with a batch axis, or return several arrays?')
  builder = _Builder(dtype)
  result, = builder.run(closed.jaxpr, closed.consts, [Ref(0)], one.shape)
  if not isinstance(result, Ref):
    result = builder.constant(result, avals[0].shape)
  return builder.graph(result.id)


class _Builder:
  """Walks jaxprs; collects nodes and evaluates what is constant."""

  def __init__(self, dtype):
    self.dtype = dtype
    self.nodes = []
    self.shapes = {}
    self.folds = {}  # id() of a constant -> rounded operations behind it.
    self.sizes = {}  # id() of a constant -> its size, if not its magnitude.
    self.caller = ''  # Source line of the call that is being inlined.
    self.kept = []  # Constants stay alive, so that no id() is used twice.

  def run(self, jaxpr, consts, args, input_shape=None):
    """Values of a jaxpr's results: each a `Ref` or a constant."""
    if input_shape is not None:
      self.shapes[0] = input_shape
    env = dict(zip(jaxpr.constvars, map(self._cast, consts)))
    env.update(zip(jaxpr.invars, args))
    read = lambda v: (self._cast(v.val) if isinstance(v, jex.Literal) else env[v])
    for eqn in jaxpr.eqns:
      results = self._equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, results))
    return [read(v) for v in jaxpr.outvars]

  def _cast(self, value):
    if isinstance(value, Ref) or not is_float(value):
      return value
    # NumPy arrays, such as literals, stay known while something is being traced.
    cast = (value if value.dtype == self.dtype else value.astype(self.dtype)
            ) if isinstance(value, jax.Array) else np.asarray(value, self.dtype)
    rounded = jnp.finfo(jax.typeof(value).dtype).bits > jnp.finfo(self.dtype).bits
    if rounded or id(value) in self.folds:
      self._remember(cast, self.folds.get(id(value), 0) + rounded,
                     self.sizes.get(id(value)))
    return cast

  def _remember(self, constant, folds, size=None):
    self.folds[id(constant)] = folds
    if size is not None:
      self.sizes[id(constant)] = size
    self.kept.append(constant)

  def _equation(self, eqn, inputs):
    name = eqn.primitive.name
    if name in CALLS:
      called, consts = inner(eqn)
      # What is jitted in a library is at the line that calls it, for the reader.
      outer, self.caller = self.caller, _where(eqn) or self.caller
      results = self.run(called, consts, inputs)
      self.caller = outer
      return results
    if not any(isinstance(i, Ref) for i in inputs):
      return self._fold(eqn, inputs)
    if name == 'scan':
      return self._unrolled(eqn, inputs)
    if name == 'while':
      results = self._while(eqn, inputs)
      if results is not None:
        return results
    if name == 'cond' and _concrete(inputs[0]) is not None:
      branch = eqn.params['branches'][int(np.clip(
          _concrete(inputs[0]), 0, len(eqn.params['branches']) - 1))]
      return self.run(branch.jaxpr, branch.consts, inputs[1:])
    return [self._node(eqn, inputs, index) for index in range(len(eqn.outvars))]

  def _fold(self, eqn, inputs):
    # Control flow is typed on the inside; what the function rounds to bfloat16 it has
    # rounded.
    typed = eqn.primitive.name in ('while', 'scan', 'cond') or any(
        _rounds(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
    if typed:
      inputs = [jnp.asarray(i, v.aval.dtype) if is_float(i) else i
                for i, v in zip(inputs, eqn.invars)]
    params = eqn.primitive.get_bind_params(
        dict(eqn.params) if typed else self._params(eqn.params))
    known = not any(isinstance(i, jax.core.Tracer) for i in inputs)
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
      results = eqn.primitive.bind(*inputs, **params)
      size = None if typed or eqn.primitive.multiple_results else folding.size(
          eqn.primitive, params, inputs, [self.sizes.get(id(i)) for i in inputs],
          results)
    results = results if eqn.primitive.multiple_results else [results]
    behind = sum(self.folds.get(id(i), 0) for i in inputs)
    # A conversion to the type that everything has already changes nothing.
    exact = eqn.primitive.name in MOVES | _EXACT or (
        eqn.primitive.name == 'convert_element_type' and all(map(is_float, inputs)))
    rounded = 0 if exact else folding.terms(eqn)
    for result in results:
      self._remember(result, behind + rounded, size)
    return [self._cast(r) for r in results]

  def _params(self, params):
    """The precision of the bounds, not of the function, for what is computed."""
    params = dict(params)
    if 'precision' in params:
      params['precision'] = lax.Precision.HIGHEST
    for key in ('preferred_element_type', 'new_dtype'):
      if params.get(key) is not None and jnp.issubdtype(params[key], jnp.floating):
        params[key] = jnp.dtype(self.dtype)
    return params

  def _unrolled(self, eqn, inputs):
    length, p = eqn.params['length'], eqn.params
    if length > MAX_UNROLLED:
      raise UnsupportedPrimitiveError(
          f'a scan of {length} steps over bounded values (from {_where(eqn)}) would '
          f'be unrolled; at most {MAX_UNROLLED} are')
    body = jex.jaxpr_as_fun(p['jaxpr'])
    n_consts, n_carry = scan_counts(p)

    def loop(*args):
      consts, carry = args[:n_consts], list(args[n_consts:n_consts + n_carry])
      xs, ys = args[n_consts + n_carry:], []
      order = range(length)[::-1] if p['reverse'] else range(length)
      for step in order:
        out = body(*consts, *carry, *(x[step] for x in xs))
        carry, y = out[:n_carry], out[n_carry:]
        ys.append(y)
      ys = ys[::-1] if p['reverse'] else ys
      return (*carry, *(jnp.stack(y) for y in zip(*ys)))

    closed = jax.make_jaxpr(loop)(*(v.aval for v in eqn.invars))
    return self.run(closed.jaxpr, closed.consts, inputs)

  def _while(self, eqn, inputs):
    """A loop whose condition is known at every step; None if it is not."""
    p = eqn.params
    first, second = p['cond_nconsts'], p['cond_nconsts'] + p['body_nconsts']
    test, body, carry = p['cond_jaxpr'], p['body_jaxpr'], inputs[second:]
    for _ in range(MAX_UNROLLED):
      going, = self.run(test.jaxpr, test.consts, [*inputs[:first], *carry])
      going = _concrete(going)
      if going is None or not going:
        return carry if going is not None else None
      carry = self.run(body.jaxpr, body.consts, [*inputs[first:second], *carry])
    raise UnsupportedPrimitiveError(
        f'a while loop over bounded values (from {_where(eqn)}) would be unrolled; it '
        f'takes more than {MAX_UNROLLED} steps')

  def _node(self, eqn, inputs, index):
    name, shape = eqn.primitive.name, eqn.outvars[index].aval.shape
    params = self._params(eqn.params)
    bounded = [i for i in inputs if isinstance(i, Ref)]
    self._refuse_rounding(eqn, index)
    if name in _IDENTITIES and _stays_float(eqn, index):
      return inputs[index]
    if name == 'mul' and len(bounded) == 2 and bounded[0] == bounded[1]:
      return self.add('square', bounded[:1], shape, jnp.square, {}, eqn)
    if name == 'integer_pow' and params['y'] == 1:
      return inputs[0]
    if name == 'integer_pow' and params['y'] in (2, -1):
      name = {2: 'square', -1: 'reciprocal'}[params['y']]
      return self.add(name, inputs, shape, _NAMED[name], {}, eqn)
    if name == 'one_minus_square':  # In derivatives since jax 0.11.
      squared = self.add('square', inputs, shape, jnp.square, {}, eqn)
      return self.add('sub', [np.ones(shape, self.dtype), squared], shape, jnp.subtract,
                      {}, eqn)
    if name == 'div' and isinstance(inputs[1], Ref):
      inverse = self.add('reciprocal', [inputs[1]], self.shapes[inputs[1].id],
                         _NAMED['reciprocal'], {}, eqn)
      return self.add('mul', [inputs[0], inverse], shape, jnp.multiply, {}, eqn)

    def evaluate(*values):
      out = eqn.primitive.bind(*values, **params)
      return out[index] if eqn.primitive.multiple_results else out

    which = {'result': index} if eqn.primitive.multiple_results else {}
    return self.add(name, inputs, shape, evaluate, params | which, eqn)

  def _refuse_rounding(self, eqn, index):
    """Raises for an equation on bounded values that rounds to less than float32."""
    dtype, p = eqn.outvars[index].aval.dtype, eqn.params
    fewer = eqn.primitive.name == 'reduce_precision' and (
        p['mantissa_bits'] < 23 or p['exponent_bits'] < 8)
    if fewer or _rounds(dtype):
      seen = f'{p["mantissa_bits"]} bits' if fewer else dtype
      raise UnsupportedPrimitiveError(
          f'the function computes in {seen} ({eqn.primitive.name!r} from '
          f'{_where(eqn) or self.caller}), whose rounding is not in the bounds, so none '
          'was returned: build the network with dtype=float32; its parameters fit')

  def add(self, name, inputs, shape, evaluate, params, eqn):
    """A new node; its `Ref`."""
    out = len(self.shapes)
    self.shapes[out] = tuple(shape)
    folds = max((self.folds.get(id(i), 0) for i in inputs
                 if not isinstance(i, Ref)), default=0)
    self.nodes.append(Node(
        name, tuple(inputs), out, tuple(shape), evaluate, params,
        _is_linear(name, inputs), folds, _where(eqn) or self.caller,
        tuple(self._size(name, i) for i in inputs)))
    return Ref(out)

  def _size(self, name, constant):
    size = self.sizes.get(id(constant))
    # What divides is off by gamma * size / constant^2, as if it were so much smaller.
    return (jnp.square(constant) / size if name == 'div' and size is not None else size)

  def constant(self, value, shape):
    """A constant as the result of an equation: it reads the input and ignores it."""
    def evaluate(mask, constant, x):
      return lax.select_n(mask, constant, jnp.broadcast_to(x.ravel()[0], mask.shape))

    out = len(self.shapes)
    self.shapes[out] = tuple(shape)
    inputs = np.zeros(shape, bool), self._cast(value), Ref(0)
    self.nodes.append(Node('select_n', inputs, out, tuple(shape), evaluate, {}, True,
                           self.folds.get(id(value), 0)))
    return Ref(out)

  def graph(self, output):
    """What the output depends on; anything else may be as odd as it likes."""
    needed, kept = {output}, []
    for node in reversed(self.nodes):
      if node.out in needed:
        kept.append(node)
        needed.update(node.operands)
    shapes = {i: s for i, s in self.shapes.items() if i in needed | {0}}
    return Graph(tuple(reversed(kept)), shapes, output, jnp.dtype(self.dtype))


_NAMED = {'square': jnp.square, 'reciprocal': lambda x: 1 / x}


# Operands that say what goes where; the equation is linear if they are constant.
_INDICES = {'select_n': slice(0, 1), 'gather': slice(1, None),
            'dynamic_slice': slice(1, None), 'dynamic_update_slice': slice(2, None),
            'scatter-add': slice(1, 2)}


def _is_linear(name, inputs):
  bounded = [isinstance(i, Ref) for i in inputs]
  if name in _INDICES:
    return not any(bounded[_INDICES[name]])
  if name in MOVES or name in SUMS or name in ('neg', 'sub'):
    return True
  if name in PRODUCTS:
    return sum(bounded) == 1
  return name == 'div' and bounded == [True, False]


def _rounds(dtype):
  """Whether numbers of a type have fewer digits than float32."""
  return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).nmant < 23


def _stays_float(eqn, index):
  return all(jnp.issubdtype(v[index].aval.dtype, jnp.floating)
             for v in (eqn.invars, eqn.outvars))


def inner(eqn):
  """(jaxpr, constants) that a call stands for."""
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    inner = eqn.params.get(key)
    if isinstance(inner, jex.ClosedJaxpr):
      return inner.jaxpr, inner.consts
    if isinstance(inner, jex.Jaxpr):
      return inner, ()
  raise UnsupportedPrimitiveError(
      f'the call {eqn.primitive.name!r} (from {_where(eqn)}) cannot be looked into')


def scan_counts(params) -> tuple[int, int]:
  """How many of a scan's inputs are constant over its steps, and how many carried."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  constant, carried, _ = params['ft_in'].unpack()  # Since jax 0.11.
  return len(constant), len(carried)


def _concrete(value):
  try:
    return None if isinstance(value, Ref) else np.asarray(value)
  except jax.errors.TracerArrayConversionError:
    return None


def _where(eqn):
  return source_info_util.summarize(eqn.source_info)
