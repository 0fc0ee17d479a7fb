"""FAB-T in L2 beside the authors' code: what comes of its projection onto hyperplanes.

Distances that FAB-T finds on the first test images that a network gets right: by
rkd_jax, by the PyPI package `pyautoattack` (see autoattack_reference.py for how to
install it), and by that package with its projection computed exactly in float64, with
and without its rule that weights of at most 1e-8 move no pixel.

  python benchmarks/fab_reference.py --run RUN --data-dir DIR --examples 120 --eps 1.5
"""

import functools
import json

import autoattack
import jax
import machine
import numpy as np
import torch
from pyautoattack import fab_base
from pyautoattack.fab_pt import FABAttack_PT

from rkd_jax import attacks

TARGETS = 9
LEAST_WEIGHT = 1e-8  # Of their rule.


def exact_projection(least):
  """As their `projection_l2`, in float64; weights of at most `least` count as zero."""
  def offsets(points, weights, bias):
    points, weights = points.double(), weights.double()
    value = (weights * points).sum(1) - bias.double()
    weights = torch.where(weights.abs() <= least, 0.0, weights)
    way = -value.sign()[:, None] * weights.sign()
    room = torch.where(way > 0, 1 - points, torch.where(way < 0, points, 0.0))
    size = weights.abs()
    scale = size.amax(1).clamp(min=1e-300)
    size, need = size / scale[:, None], value.abs() / scale
    moves = lambda t: torch.minimum(t[:, None] * size, room)
    t, reached = torch.zeros_like(need), (size * room).sum(1) > need
    for _ in range(100):  # Newton's method on a concave function, from below.
      rise = torch.where(room > t[:, None] * size, size**2, 0.0).sum(1)
      lacking = need - (size * moves(t)).sum(1)
      if not (reached & (lacking > 1e-9 * need)).any():
        break
      t = torch.where(rise > 0, t + lacking / rise.clamp(min=1e-300), t)
    else:
      raise AssertionError('the projection did not converge')
    return (way * torch.where(reached[:, None], moves(t), room)).float()
  return offsets


def theirs(model, images, labels):
  """float[N, TARGETS]: distances; inf where nothing was found."""
  found = []
  for rank in range(TARGETS):
    attack = FABAttack_PT(model, n_restarts=1, n_iter=100, eps=1e9, seed=0, norm='L2',
                          verbose=False, device='cpu')
    attack.target_class = rank + 2
    with torch.no_grad():
      adv = attack.attack_single_run(images, labels, is_targeted=True)
    far = (adv - images).flatten(1).norm(dim=1).numpy()
    found.append(np.where(far > 0, far, np.inf))
  return np.stack(found, 1)


def ours(fn, pixels, labels, order):
  """As `theirs`."""
  attack = jax.jit(lambda targets: attacks.fab(
      fn, pixels, labels, key=jax.random.key(0), norm='l2', targets=targets).distance)
  return np.stack([np.asarray(attack(order[:, rank])) for rank in range(TARGETS)], 1)


def main(argv=None):
  args = autoattack.parser_of(__doc__, examples=120, needs_run=True).parse_args(argv)
  torch.set_num_threads(1)
  wanted, args.examples = args.examples, 2 * args.examples
  network, variables, split = autoattack.load(args)
  fn = functools.partial(network.predict, variables)
  pixels = split.image.astype(np.float32) / np.float32(255)
  logits = np.asarray(jax.jit(fn)(pixels))
  right = np.flatnonzero(logits.argmax(1) == split.label)[:wanted]
  pixels, labels, logits = pixels[right], split.label[right], logits[right]
  images = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
  given = autoattack.to_torch(variables['params']), images, torch.tensor(
      labels.astype(np.int64))
  found = {'rkd_jax': ours(fn, pixels, labels, np.argsort(-logits, 1)[:, 1:]),
           'theirs': theirs(*given)}
  for name, least in (('theirs, exact, small weights too', 0.0),
                      ('theirs, exact', LEAST_WEIGHT)):
    fab_base.projection_l2 = exact_projection(least)
    found[name] = theirs(*given)
  print(json.dumps(machine.describe('cpu')))
  broken = {name: far.min(1) <= args.eps for name, far in found.items()}
  print(f'| of {len(labels)} images, eps {args.eps:g} | broken | median distance | '
        + ' | '.join(f'other verdict than {name}' for name in found) + ' |')
  print('| --- |' + ' ---: |' * (2 + len(found)))
  for name, far in found.items():
    differ = [str(int((broken[name] != other).sum())) for other in broken.values()]
    print(f'| {name} | {int(broken[name].sum())} | {np.median(far.min(1)):.3f} | '
          + ' | '.join(differ) + ' |')


if __name__ == '__main__':
  main()
