"""Where a number came from: hardware, versions, commit."""

import functools
import os
import pathlib
import platform
import subprocess
from importlib import metadata

import jax


@functools.cache
def describe() -> dict[str, str]:
  """Facts that go beside every result: device, cores, versions, commit."""
  device = jax.devices()[0]
  kind = _processor() if device.platform == 'cpu' else device.device_kind
  versions = {name: metadata.version(name)
              for name in ('jax', 'jaxlib', 'flax', 'optax')}
  return {
      'device': f'{len(jax.devices())} x {kind}',
      'cores': str(os.cpu_count()),
      'python': platform.python_version(),
      'versions': ', '.join(f'{k} {v}' for k, v in versions.items()),
      'commit': _commit()}


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return f'{line.partition(":")[2].strip()} ({platform.machine()})'
  return platform.processor() or platform.machine()


def _commit() -> str:
  """Commit of the source tree, with '+' if it was changed; '' outside git."""
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / '.git').exists():
    return ''
  try:
    git = functools.partial(subprocess.run, cwd=root, capture_output=True,
                            text=True, timeout=10, check=True)
    head = git(['git', 'rev-parse', '--short=12', 'HEAD']).stdout.strip()
    changed = git(['git', 'status', '--porcelain', '-uno']).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''
  return head + ('+' if changed else '')
