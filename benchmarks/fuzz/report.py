"""Runs of the fuzz in several processes, and what is said of them."""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import time

from rkd_jax.report import provenance

from . import check

APART = 10**6  # Between the numbers of the first cases of two workers.


def main(count: int, seed: int, workers: int, only: int | None) -> int:
  """Compares `count` programs; the exit code: whether anything was found."""
  start = time.monotonic()
  if only is not None:
    tally = check.run(seed, only, 1, told, only=True)
  else:
    shares = [count // workers + (w < count % workers) for w in range(workers)]
    firsts = [w * APART for w in range(workers)]
    run = functools.partial(check.run, seed, report=told)
    tally = total(_mapped(run, firsts, shares))
  print(summary(tally, time.monotonic() - start))
  return int(bool(tally.failures))


def _mapped(run, firsts, counts):
  if len(firsts) == 1:
    return [run(firsts[0], counts[0])]
  fresh = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(len(firsts), fresh) as pool:
    return list(pool.map(run, firsts, counts))


def told(failure: check.Failure):
  print(f'\n# {failure.kind} of {failure.method}, case {failure.number}\n{failure.text}',
        flush=True)


def total(tallies: list[check.Tally]) -> check.Tally:
  """The sums."""
  fields = [f.name for f in dataclasses.fields(check.Tally)]
  return check.Tally(**{name: functools.reduce(
      lambda a, b: a + b, [getattr(t, name) for t in tallies]) for name in fields})


def summary(tally: check.Tally, seconds: float) -> str:
  """What a run has shown."""
  kinds = collections.Counter(f.kind for f in tally.failures)
  place = provenance.describe()
  lines = [
      f'{tally.programs} programs ({tally.chains} chains of steps), {tally.sets} sets, '
      f'{tally.samples} samples ({tally.undefined} of them without a value), '
      f'{tally.outputs} pairs of bounds ({tally.finite} finite): '
      f'{kinds["violation"]} violations, {kinds["NaN"]} with NaN, {kinds["crash"]} '
      f'crashes, {kinds["mixing"]} functions of a whole batch not refused, '
      f'in {seconds:.0f} s on {place["device"]}, {place["versions"]}, commit '
      f'{place["commit"]}.',
      'Refused chains: ' + '; '.join(
          f'{n} {reason}' for reason, n in tally.refused.most_common()),
      'Chains that hold an equation and have finite bounds: ' + ', '.join(
          f'{name} {n}' for name, n in sorted(tally.rules.items()))]
  return '\n'.join(lines)
