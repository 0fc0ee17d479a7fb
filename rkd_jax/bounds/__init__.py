"""Certified bounds of any JAX function: a library of its own.

    import rkd_jax as rkd
    ball = rkd.bounds.linf_ball(images, 0.1, lower=0.0, upper=1.0)
    out = rkd.bounds.crown(fn, ball)  # out.lower <= fn(x) <= out.upper
"""

from rkd_jax.bounds.alpha import alpha_crown
from rkd_jax.bounds.branch import Verification, verify
from rkd_jax.bounds.crown import Bounds, Line, Spec, crown, crown_ibp, ibp, margins
from rkd_jax.bounds.doors import box, l1_ball, l2_ball, linf_ball
from rkd_jax.bounds.forward import forward
from rkd_jax.bounds.milp import Exact, lp, milp
from rkd_jax.bounds.sets import Box, L1Ball, L2Ball

__all__ = ['Bounds', 'Box', 'Exact', 'L1Ball', 'L2Ball', 'Line', 'Spec',
           'Verification', 'alpha_crown', 'box', 'crown', 'crown_ibp', 'forward', 'ibp',
           'l1_ball', 'l2_ball', 'linf_ball', 'lp', 'margins', 'milp', 'verify']
