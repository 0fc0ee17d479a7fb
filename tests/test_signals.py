"""A first signal stops a run at a safe point, a second at once; none gets lost."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from rkd_jax import signals
from rkd_jax.training.progress import Progress

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_outside_a_training_it_stops_at_once(number):
  with pytest.raises(signals.Interrupted) as stop, signals.listening():
    os.kill(os.getpid(), number)
  assert stop.value.number == number
  assert not signals.pending()


@pytest.mark.parametrize('call', ['stage', 'detail'])
def test_one_that_a_callback_swallowed_is_heard_at_the_next_stage(call):
  bar = Progress(enabled=False)
  with pytest.raises(signals.Interrupted), signals.listening():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:  # As a callback of a C library does.
      pass
    getattr(bar, call)('x')


def test_of_one_that_a_callback_swallowed_no_traceback_is_printed(capfd):
  class Callback:
    def __del__(self):  # Python prints what is raised here, and goes on.
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(signals.Interrupted), signals.listening():
    Callback()
    signals.poll()
  assert capfd.readouterr().err == ''


def test_in_a_training_it_waits_to_be_asked_for(capfd):
  with signals.listening():
    with pytest.raises(signals.Interrupted):
      with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.pending()
        Progress(enabled=False).stage('x')  # Does not stop it either.
  assert 'rkd: interrupted: stops when its work is safe' in capfd.readouterr().err


def test_the_second_ends_the_process():
  script = ('import os, signal; from rkd_jax import signals\n'
            'with signals.listening(), signals.deferred():\n'
            '  os.kill(os.getpid(), signal.SIGINT)\n'
            '  os.kill(os.getpid(), signal.SIGTERM)\n'
            '  print("still here")\n')
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                        cwd=ROOT)
  assert (done.returncode, done.stdout) == (-signal.SIGTERM, '')


def test_handlers_are_put_back_and_nohup_is_respected():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with signals.listening():
      assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
      assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
  finally:
    signal.signal(signal.SIGINT, before)
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
