"""Lines and ranges of the nonlinear functions that bound propagation knows.

`RULES` maps a primitive of one operand to its relaxation, by the primitive's name;
gelu (by erf), gelu_tanh, silu and softplus are whole functions rather than
primitives. `BINARY` has the primitives of two bounded operands. Constants are in the
factories: relu is `max_const(0.)`.

    rule = RULES['tanh']
    lower, upper = rule.interval(lo, hi)
    lines = rule.lines(lo, hi, choice_lower, choice_upper)
"""

from rkd_jax.bounds import (
    binary,
    convex,
    piecewise,
    powers,
    roots,
    smooth,
    sshaped,
    trigonometry,
)
from rkd_jax.bounds.binary import reduce_max_lines, reduce_min_lines
from rkd_jax.bounds.outward import Binary, BinaryLines, Elementwise, Lines
from rkd_jax.bounds.piecewise import clamp, leaky_relu, max_const, min_const
from rkd_jax.bounds.powers import integer_pow, power

__all__ = ['BINARY', 'Binary', 'BinaryLines', 'Elementwise', 'Lines', 'RULES', 'clamp',
           'integer_pow', 'leaky_relu', 'max_const', 'min_const', 'power',
           'reduce_max_lines', 'reduce_min_lines']

RULES: dict[str, Elementwise] = (
    piecewise.RULES | convex.RULES | powers.RULES | roots.RULES | sshaped.RULES
    | smooth.RULES | trigonometry.RULES)

BINARY: dict[str, Binary] = binary.RULES
