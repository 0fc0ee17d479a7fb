"""A directory belongs to one process at a time, and to none once that is dead."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from rkd_jax import locks
from rkd_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
HOLDER = ('import sys, time; from rkd_jax import locks\n'
          'with locks.hold(sys.argv[1]):\n'
          '  print("held", flush=True)\n'
          '  time.sleep(60)\n')


def test_another_process_is_refused_and_named_until_it_is_killed(tmp_path):
  holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path / 'run')],
                            cwd=ROOT, stdout=subprocess.PIPE, text=True)
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(ConfigError) as error:
      with locks.hold(tmp_path / 'run'):
        pass
    assert f'pid {holder.pid} on {socket.gethostname()}' in str(error.value)
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
  with locks.hold(tmp_path / 'run'):
    assert f'pid {os.getpid()} ' in (tmp_path / 'run' / locks.FILE).read_text()


def test_nested_blocks_and_directories_are_fine_other_threads_are_not(tmp_path):
  refused = []

  def other():
    try:
      with locks.hold(tmp_path):
        pass
    except ConfigError as error:
      refused.append(str(error))

  with locks.hold(tmp_path), locks.hold(tmp_path / 'teachers' / 'clean'):
    with locks.hold(tmp_path / 'teachers' / '..'):
      pass
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
  assert len(refused) == 1 and f'pid {os.getpid()}' in refused[0]
  other()
  assert len(refused) == 1
