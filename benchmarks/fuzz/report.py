"""Runs of the fuzz in several processes, and what is said of them."""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import time

from rkd_jax.report import provenance

from . import check


def main(count: int, seed: int, workers: int, only: int | None) -> int:
  """Compares `count` programs; the exit code: whether anything was found."""
  start = time.monotonic()
  if only is not None:
    tally = check.only(seed, only, told)
  elif workers == 1:
    tally = check.run(seed, 0, count, report=told)
  else:
    share = functools.partial(_share, seed, count, workers)
    fresh = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, fresh) as pool:
      tally = total(list(pool.map(share, range(workers))))
  print(summary(tally, time.monotonic() - start))
  return int(bool(tally.failures))


def _share(seed, count, workers, worker):
  """What one of several processes does: every chain of this number."""
  mine = count // workers + (worker < count % workers)
  return check.run(seed, worker * check.CASES, mine, workers, told)


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
