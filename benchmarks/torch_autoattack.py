"""AutoAttack standard (L-inf) in PyTorch, written plainly from the papers.

The comparison for autoattack.py: eager, batches of what is left, each stage and each
target class on the survivors of those before. APGD as in arXiv:2003.01690, FAB-T as in
arXiv:1907.02044, Square as in arXiv:1912.00049 (one place for the squares of a batch).
"""

import math
import time

import torch
from torch.nn import functional as F

TARGETS = 9


def autoattack(model, images, labels, *, eps, steps=100, queries=5000, batch=500, seed=0):
  """(right bool[N] at the end, [(stage, robust accuracy, seconds)]).

  Args:
    model: float32[B, C, H, W] in [0, 1] -> logits, in evaluation mode.
    images: float32[N, C, H, W].
    labels: int64[N].
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    logits = torch.cat([model(part) for part in images.split(batch)])
  right = logits.argmax(1) == labels
  others = logits.scatter(1, labels[:, None], -math.inf).argsort(1, descending=True)

  def untargeted(x, y, _):
    return apgd(model, x, y, lambda z: F.cross_entropy(z, y, reduction='none'), eps,
                steps, generator)

  def targeted(x, y, target):
    return apgd(model, x, y, lambda z: targeted_ratio(z, y, target), eps, steps,
                generator)

  stages = (
      ('apgd-ce', untargeted, 1), ('apgd-t', targeted, TARGETS),
      ('fab-t', lambda x, y, target: fab(model, x, y, target, eps, steps), TARGETS),
      ('square', lambda x, y, _: square(model, x, y, eps, queries, generator), 1))
  reports = []
  for name, attack, rounds in stages:
    began = time.perf_counter()
    for rank in range(rounds):
      for part in right.nonzero()[:, 0].split(batch):
        adversarial = attack(images[part], labels[part], others[part, rank])
        assert float((adversarial - images[part]).abs().max()) <= eps + 1e-6
        with torch.no_grad():
          right[part] = model(adversarial).argmax(1) == labels[part]
    reports.append((name, right.double().mean().item(), time.perf_counter() - began))
  return right, reports


def targeted_ratio(logits, labels, targets):
  """-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), the sorted logits below."""
  top = logits.sort(1, descending=True).values
  own = logits.gather(1, labels[:, None])[:, 0]
  wanted = logits.gather(1, targets[:, None])[:, 0]
  return -(own - wanted) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _gradient(model, point, loss):
  point = point.detach().requires_grad_(True)
  logits = model(point)
  value = loss(logits)
  gradient, = torch.autograd.grad(value.sum(), point)
  return value.detach(), gradient, logits.detach()


def _project(point, images, eps):
  return torch.minimum(torch.maximum(point, images - eps), images + eps).clamp(0, 1)


def _where(mask, new, old):
  return torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old)


def apgd(model, images, labels, loss, eps, steps, generator):
  """Algorithm 1; the last misclassified point, else the one of the highest loss."""
  shares = [0.0, 0.22]
  while shares[-1] <= 1:
    shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
  marks = [math.ceil(round(p * steps, 9)) for p in shares]
  noise = torch.rand(images.shape, generator=generator) * 2 - 1
  point = _project(images + eps * noise, images, eps)
  value, gradient, logits = _gradient(model, point, loss)
  wrong_point, wrong = point, logits.argmax(1) != labels
  best, best_value, best_gradient = point, value, gradient
  size = torch.full((len(images), 1, 1, 1), 2 * eps)
  previous, gains = point, torch.zeros(len(images))
  then, halved = best_value, torch.ones(len(images), dtype=torch.bool)
  for k in range(1, steps + 1):
    ahead = _project(point + size * gradient.sign(), images, eps)
    alpha = 0.75 if k > 1 else 1.0
    moved = _project(
        point + alpha * (ahead - point) + (1 - alpha) * (point - previous), images, eps)
    previous, point = point, moved
    old = value
    value, gradient, logits = _gradient(model, point, loss)
    now = logits.argmax(1) != labels
    wrong_point, wrong = _where(now, point, wrong_point), wrong | now
    gains += value > old
    better = value > best_value
    best = _where(better, point, best)
    best_gradient = _where(better, gradient, best_gradient)
    best_value = torch.where(better, value, best_value)
    if k in marks[1:]:
      length = k - marks[marks.index(k) - 1]
      halve = (gains < 0.75 * length) | (~halved & (best_value == then))
      size = _where(halve, size / 2, size)
      point = _where(halve, best, point)
      gradient = _where(halve, best_gradient, gradient)
      value = torch.where(halve, best_value, value)
      gains, then, halved = torch.zeros_like(gains), best_value, halve
  return _where(wrong, wrong_point, best)


def hyperplane(point, normal, value):
  """L-inf projection onto {z in [0, 1]: value + normal (z - point) = 0}; flat [B, D]."""
  way = -normal.sign() * value.sign()[:, None]
  room = torch.where(way > 0, 1 - point, point)
  weight = normal.abs()
  room_sorted, order = room.sort(1)
  weight_sorted = weight.gather(1, order)
  spent = (weight_sorted * room_sorted).cumsum(1)
  left = weight_sorted.sum(1, keepdim=True) - weight_sorted.cumsum(1)
  reach = spent + room_sorted * left
  wanted = value.abs()[:, None]
  k = torch.searchsorted(reach.contiguous(), wanted).clamp(max=point.shape[1] - 1)
  before = (k - 1).clamp(min=0)
  spent_before = torch.where(k > 0, spent.gather(1, before), 0.0)
  left_before = torch.where(k > 0, left.gather(1, before),
                            weight.sum(1, keepdim=True))
  radius = (wanted - spent_before) / left_before.clamp(min=1e-12)
  return point + way * torch.minimum(radius, room)


def fab(model, images, labels, targets, eps, steps):
  """FAB-T, Algorithm 1 from the clean image; what it found within eps."""
  clean = images.flatten(1)
  point, best = images, images
  distance = torch.full((len(images),), math.inf)
  of = lambda z, classes: z.gather(1, classes[:, None])[:, 0]
  difference = lambda z: of(z, labels) - of(z, targets)
  for _ in range(steps):
    value, gradient, _ = _gradient(model, point, difference)
    flat, normal = point.flatten(1), gradient.flatten(1)
    from_point = hyperplane(flat, normal, value) - flat
    from_clean = hyperplane(
        clean, normal, value + (normal * (clean - flat)).sum(1)) - clean
    here, there = from_point.abs().amax(1), from_clean.abs().amax(1)
    bias = (here / (here + there).clamp(min=1e-12)).clamp(max=0.1)[:, None]
    flat = ((1 - bias) * (flat + 1.05 * from_point)
            + bias * (clean + 1.05 * from_clean)).clamp(0, 1)
    point = flat.view_as(images)
    with torch.no_grad():
      wrong = model(point).argmax(1) != labels
    far = (flat - clean).abs().amax(1)
    better = wrong & (far < distance)
    best, distance = _where(better, point, best), torch.where(better, far, distance)
    point = _where(wrong, images + 0.9 * (point - images), point)
  margin = lambda z: (of(z, labels)
                      - z.scatter(1, labels[:, None], -math.inf).amax(1))
  with torch.no_grad():
    inner, outer, low, high = images, best, margin(model(images)), margin(model(best))
    for _ in range(3):
      share = (1.01 * low / (low - high).clamp(min=1e-12)).clamp(0, 1)
      middle = inner + share.view(-1, 1, 1, 1) * (outer - inner)
      value = margin(model(middle))
      wrong = value < 0
      inner, low = _where(~wrong, middle, inner), torch.where(wrong, low, value)
      outer, high = _where(wrong, middle, outer), torch.where(wrong, value, high)
  inside = (outer - images).flatten(1).abs().amax(1) <= eps
  return _where(inside & distance.isfinite(), outer, images)


@torch.no_grad()
def square(model, images, labels, eps, queries, generator):
  """Algorithm 2 on the examples that are left."""
  count, channels, rows, columns = images.shape
  sign = lambda *shape: torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
  margin = lambda z, y: (z.scatter(1, y[:, None], -math.inf).amax(1)
                         - z.gather(1, y[:, None])[:, 0])
  best = (images + eps * sign(count, channels, 1, columns)).clamp(0, 1)
  value = margin(model(best), labels)
  for query in range(1, queries):
    left = (value <= 0).nonzero()[:, 0]
    if not len(left):
      break
    marks = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    share = 0.8 / 2**sum(query - 1 > mark for mark in marks)
    side = max(1, min(round(math.sqrt(share * rows * columns)), rows, columns))
    top, start = (int(torch.randint(0, n - side + 1, (), generator=generator))
                  for n in (rows, columns))
    x, y = images[left], labels[left]
    point = best[left]
    place = (..., slice(top, top + side), slice(start, start + side))
    point[place] = (x[place] + eps * sign(len(left), channels, 1, 1)).clamp(0, 1)
    found = margin(model(point), y)
    better = found > value[left]
    best[left] = _where(better, point, best[left])
    value[left] = torch.where(better, found, value[left])
  return best
