"""What happens to a process that is asked to stop, and to those that it has started."""

import os
import signal
import subprocess
import sys
import time

import pytest

from asen_jax import signals
from tests.conftest import ROOT


def send(number):
    """Send a signal to this process, and let its handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize('number', signals.STOP_SIGNALS)
def test_a_stop_request_records_the_first_signal_and_restores_the_handlers(number):
    before = [signal.getsignal(other) for other in signals.STOP_SIGNALS]
    with signals.StopRequest() as stop:
        assert stop.signal_number is None
        send(number)
        for other in signals.STOP_SIGNALS:
            send(other)
        assert stop.signal_number == number
    assert [signal.getsignal(other) for other in signals.STOP_SIGNALS] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def python(code, *arguments):
    return subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_a_later_ctrl_c_ends_the_process_at_once():
    code = """
import os, signal, time
from asen_jax import signals
signals.PATIENCE = 0.1
with signals.StopRequest():
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
        print(number, flush=True)
        time.sleep(0.06)
"""
    done = python(code)
    assert done.returncode == 130
    assert done.stdout.split() == ['2', '2', '15']
    assert 'interrupted; run the same command' in done.stderr and done.stderr.count('\n') == 1


INTERRUPT = """
import os, signal
from cli import console
from asen_jax import signals
console.set_up_output()
signals.handle_ctrl_c()
def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    print('missed')
"""


def test_ctrl_c_interrupts_only_once():
    done = python(
        f'{INTERRUPT}\ntry:\n    interrupt()\nexcept KeyboardInterrupt:\n    interrupt()\n    print("interrupted")'
    )
    assert done.stdout == 'missed\ninterrupted\n'


def test_ctrl_c_during_garbage_collection_is_not_lost():
    done = python(f'{INTERRUPT}\nimport gc\ngc.callbacks.append(interrupt)\ngc.collect()')
    assert (done.returncode, done.stdout) == (130, '')
    assert (
        done.stderr.endswith('interrupted; run the same command again to continue.\n') and done.stderr.count('\n') == 1
    )


def test_processes_that_start_while_signals_are_blocked_ignore_them():
    code = 'import os, signal; [os.kill(os.getpid(), number) for number in (1, 2, 15)]; print("alive")'
    with signals.signals_blocked():
        assert python(code).stdout == 'alive\n'
    assert python(code).returncode == -signal.SIGHUP
