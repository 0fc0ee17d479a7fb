"""What a number was measured on: hardware, versions, commit, matmul rate."""

import datetime
import os
import statistics
import time

import jax.numpy as jnp
import torch

from rkd_jax.report import provenance
from rkd_jax.training import parallel


def describe(device: str) -> dict:
  """Hardware, versions, commit, date and load, for the record."""
  accelerator = {'gpu': torch.cuda.get_device_name(0)} if device == 'gpu' else {}
  return {
      **provenance.describe(), **accelerator, 'torch': torch.__version__,
      'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'minutes'),
      'load_average': round(os.getloadavg()[0], 2)}


def matmul_rates(device: str, dtype: str, repeats: int = 7) -> dict[str, float]:
  """GFLOP/s of a square product in both libraries, alternating; medians."""
  size = 8192 if device == 'gpu' else 2048
  ours = jnp.ones((size, size), dtype)
  product = parallel.compile_fn(jnp.matmul)
  theirs = torch.ones((size, size), dtype=getattr(torch, dtype),
                      device='cuda' if device == 'gpu' else 'cpu')

  def with_torch():
    (theirs @ theirs)[0, 0].item()

  runs = {'jax': lambda: product(ours, ours).block_until_ready(),
          'torch': with_torch}
  seconds = alternate(runs, repeats)
  return {name: 2 * size**3 / statistics.median(times) / 1e9
          for name, times in seconds.items()}


def alternate(runs: dict, repeats: int) -> dict[str, list[float]]:
  """Seconds of each run, `repeats` times in turn, after one that is not timed."""
  seconds = {name: [] for name in runs}
  for run in runs.values():
    run()
  for _ in range(repeats):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - began)
  return seconds
