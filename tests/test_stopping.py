import contextlib
import os
import signal
import sys

import pytest

from replay_service.stopping import Stopped, stop_signals

NUMBERS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number, _ in NUMBERS]


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_a_signal_ends_the_block_with_the_exit_code_of_shells(number: int, code: int) -> None:
    before = handlers()
    with (
        pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name}") as stopped,
        stop_signals() as is_stopped,
    ):
        assert not is_stopped()
        assert handlers() != before
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")
    assert is_stopped()
    assert stopped.value.exit_code == code
    assert handlers() == before


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_what_a_library_makes_of_a_signal_ends_with_the_same_code(number: int, code: int) -> None:
    with pytest.raises(Stopped) as stopped, stop_signals():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None
    assert stopped.value.exit_code == code


def test_the_handler_that_ray_puts_in_place_of_ours_ends_the_block_with_the_same_code() -> None:
    with pytest.raises(Stopped) as stopped, stop_signals():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143
    with pytest.raises(SystemExit), stop_signals():
        sys.exit(2)


def test_a_signal_that_was_swallowed_still_ends_the_block() -> None:
    went_on = False
    with pytest.raises(Stopped), stop_signals() as is_stopped:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        went_on = is_stopped()
    assert went_on


def test_a_block_within_another_one_leaves_the_code() -> None:
    with pytest.raises(Stopped) as stopped, stop_signals(), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143


def test_without_a_signal_everything_is_as_it_was() -> None:
    before = handlers()
    with stop_signals() as is_stopped:
        assert not is_stopped()
    assert handlers() == before


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="ours"), stop_signals():
        raise ValueError("ours")
