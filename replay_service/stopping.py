"""Stopping a command: SIGTERM and SIGINT end it with one sentence, and with the exit code that shells expect."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop; no `Exception`, so that nothing on the way takes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT raise `Stopped` in the main thread, and out of this block; gives whether one has come.

    `start_ray` may run within the block: it leaves these handlers as it finds them.

    Raises:
        Stopped: also when what a signal raised was caught on the way.
    """
    numbers: list[int] = []

    def stop(number: int, _frame: object) -> None:
        numbers.append(number)
        raise Stopped(number)

    usual = {each: signal.signal(each, stop) for each in _SIGNALS}
    try:
        yield lambda: bool(numbers)
    except Stopped:
        raise
    except KeyboardInterrupt:  # Ray raises one of its own in place of ours
        raise Stopped(numbers[0] if numbers else signal.SIGINT) from None
    except SystemExit as ended:  # so ends Ray's handler, which is in place while Ray starts
        if ended.code == signal.SIGTERM:
            raise Stopped(signal.SIGTERM) from None
        raise
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
    if numbers:
        raise Stopped(numbers[0])
