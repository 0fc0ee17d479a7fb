"""Two classifiers on one input: how far apart they can be.

The two are joined in one function, so that linear bounds see that what one says and
what the other says depend on the same x. Notation: z are logits, p = softmax(z), and
u_c = log(p_c / (1 - p_c)) = -log sum_{j != c} exp(z_j - z_c) the log-odds of class c, so
that p_c = 1 / (1 + exp(-u_c)).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.bounds import rounding
from rkd_jax.bounds.crown import Bounds, Spec
from rkd_jax.bounds.sets import InputSet

Classifier = Callable[[jax.Array], jax.Array]


def log_odds(logits: jax.Array) -> jax.Array:
  """u_c of each class: [B, K], for logits [B, K].

  Written with the margins z_j - z_c, whose bounds are much tighter than those of the
  logits; the range of u over theirs is exact (the function is monotone in each).
  """
  return -jax.nn.logsumexp(margins(logits), axis=2)


def margins(logits: jax.Array) -> jax.Array:
  """z_j - z_c for every class c and the others j, in order: [B, K, K - 1]."""
  size = logits.shape[1]
  eye = np.eye(size, dtype=logits.dtype)
  others = np.array([[j for j in range(size) if j != c] for c in range(size)])
  return jnp.einsum('bk,cjk->bcj', logits, eye[others] - eye[:, None],
                    precision=jax.lax.Precision.HIGHEST)


def logit_gaps(teacher: Classifier, student: Classifier, ball: InputSet,
               method: Callable[..., Bounds]) -> jax.Array:
  """W_c >= |(d_c - d_j)| for every class j and all x of the set, d = z_T - z_S: [B, K].

  log-sum-exp changes by no more than the largest change of what it is of, so W_c also
  bounds |u_T - u_S| of class c, and tanh(W_c / 4) bounds |p_T - p_S|.

  Args:
    teacher, student: float[B, ...] -> float[B, K].
    ball: the inputs.
    method: `ibp`, `crown_ibp`, ...
  """
  size = jax.eval_shape(student, jax.ShapeDtypeStruct(ball.shape, ball.dtype)).shape[1]
  # d_c less the mean of d, nearly: this share of the sum is exact in float32, as is one
  # less it, so differences of two rows are those of d.
  centered = np.eye(size) - round(2**20 / size) / 2**20
  spec = Spec(jnp.broadcast_to(jnp.asarray(centered, ball.dtype),
                               (ball.shape[0], size, size)),
              jnp.zeros((ball.shape[0], size), ball.dtype))
  found = method(lambda x: teacher(x) - student(x), ball, spec)
  most = jnp.max(found.upper, axis=1, keepdims=True)
  least = jnp.min(found.lower, axis=1, keepdims=True)
  gaps = jnp.maximum(most - found.lower, found.upper - least)
  return (gaps * (1 + 4 * rounding.unit_roundoff(ball.dtype))  # Of the two differences.
          + rounding.tiny(0, ball.dtype))
