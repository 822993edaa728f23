"""Signals during training: noted, and raised where the state is complete."""

from __future__ import annotations

import signal
import threading

import pytest

from textdistill.training.interrupts import Interrupted, Interrupts


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_a_whole_state(signum: signal.Signals) -> None:
    before, passed = signal.getsignal(signum), []
    with pytest.raises(Interrupted) as raised, Interrupts() as interrupts:
        assert not interrupts.noted
        signal.raise_signal(signum)
        passed.append("half a step")
        assert interrupts.noted
        interrupts.stop()
    assert passed == ["half a step"]
    assert raised.value.signum == signum
    assert signal.getsignal(signum) == before


def test_signal_ends_an_open_block_at_once() -> None:
    passed = []
    with pytest.raises(Interrupted), Interrupts() as interrupts, interrupts.at_once():
        signal.raise_signal(signal.SIGINT)
        passed.append("the rest of a validation")
    assert not passed


def test_signal_before_an_open_block_is_raised_by_it() -> None:
    with pytest.raises(Interrupted), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with interrupts.at_once():
            pytest.fail("the block began")


def test_second_signal_is_raised_at_once() -> None:
    passed = []
    with pytest.raises(Interrupted), Interrupts():
        signal.raise_signal(signal.SIGINT)
        passed.append("first")
        signal.raise_signal(signal.SIGINT)
        passed.append("second")
    assert passed == ["first"]


def test_signal_in_the_last_step_is_not_lost() -> None:
    with pytest.raises(Interrupted), Interrupts():
        signal.raise_signal(signal.SIGTERM)


def test_error_goes_before_a_noted_signal() -> None:
    with pytest.raises(OSError, match="disk"), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk")


def test_other_threads_leave_the_handlers_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
