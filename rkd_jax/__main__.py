"""`python -m rkd_jax` is the command `rkd`."""

import sys

from rkd_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
