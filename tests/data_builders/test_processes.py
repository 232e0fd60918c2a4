"""Work in several processes is that of one, and ends with a sentence when a process is killed."""

import os
import signal

import pytest

from asen_jax.errors import InputError
from data_builders.processes import map_in_processes


def square(number):
    return number**2, os.getpid()


def fail(number):
    raise ValueError(f'number {number}')


def kill(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_results_are_in_order_and_come_from_several_processes(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    squares, processes = zip(*map_in_processes(square, range(100), 50), strict=True)
    assert list(squares) == [number**2 for number in range(100)]
    assert os.getpid() not in processes
    assert {process for _, process in map_in_processes(square, range(99), 50)} == {os.getpid()}


@pytest.mark.parametrize('function,error,sentence', [(fail, ValueError, 'number 0'), (kill, InputError, 'was killed')])
def test_what_goes_wrong_in_a_process_is_raised(monkeypatch, function, error, sentence):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    with pytest.raises(error, match=sentence):
        list(map_in_processes(function, range(40), 20))
