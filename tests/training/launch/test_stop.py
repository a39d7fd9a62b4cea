import signal

import pytest

from training.launch.stop import SUPERVISED, Stop


@pytest.fixture
def caught():
    """Signals that came to the handlers outside of `listening`."""
    found = []
    before = {number: signal.signal(number, lambda n, _: found.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_request_and_any_second_one_ends_the_process(caught, number):
    with Stop().listening() as stop:
        assert (stop.is_set, stop.number) == (False, 0)
        signal.raise_signal(number)
        assert (stop.is_set, stop.number, caught) == (True, number, [])
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [signal.SIG_DFL] * 2
    signal.raise_signal(number)
    assert caught == [number]


def test_outside_signals_are_what_they_were(caught):
    with Stop().listening() as stop:
        pass
    signal.raise_signal(signal.SIGTERM)
    assert (stop.is_set, caught) == (False, [signal.SIGTERM])


def test_handlers_are_given_back_when_the_run_fails(caught):
    with pytest.raises(RuntimeError, match="toy"), Stop().listening():
        raise RuntimeError("toy")
    signal.raise_signal(signal.SIGINT)
    assert caught == [signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_of_a_supervisor_ignores_the_request_that_comes_twice(monkeypatch, caught, number):
    monkeypatch.setenv(SUPERVISED, "1")
    with Stop().listening() as stop:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == number
    signal.raise_signal(signal.SIGTERM)
    assert caught == []
