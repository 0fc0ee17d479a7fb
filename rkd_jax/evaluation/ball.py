"""The ball in which a finished student is attacked: that of its run, or another."""

import dataclasses

from rkd_jax import attacks
from rkd_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Ball:
  """What perturbations are allowed, and what tables of them are called.

  Attributes:
    norm: 'linf', 'l2' or 'l1'.
    eps: the radius.
    suffix: of file names; '' for the ball of the run itself.
  """

  norm: str
  eps: float
  suffix: str = ''

  @classmethod
  def of(cls, config, norm: str | None, eps: float | None) -> 'Ball':
    """The run's where nothing is given.

    Raises:
      ConfigError: unknown norm, a radius that is none, or another norm without one.
    """
    own = config.attack
    norm = norm or own.norm
    attacks.ball.check_norm(norm)
    if eps is None and norm != own.norm:
      raise ConfigError(f'norm {norm!r} needs a radius eps: that of the run, '
                        f'{own.eps:g}, is one in {own.norm!r}')
    eps = own.eps if eps is None else eps
    if not 0 < eps < float('inf'):
      raise ConfigError(f'eps must be > 0 and finite, got {eps}')
    if norm == 'linf' and eps > 1:
      raise ConfigError(f'eps must be at most 1 in linf, got {eps:g}; pixels are in '
                        f'[0, 1]: write {eps / 255:.4g} if you meant {eps:g}/255')
    same = (norm, eps) == (own.norm, own.eps)
    return cls(norm, eps, '' if same else f'_{norm}_{eps:g}')
