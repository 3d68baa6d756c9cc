"""A transport that fails in given ways, and a policy that soon gives up."""

import httpx2

from replay_trainer.client import RetryPolicy

QUICK = RetryPolicy(give_up_after_s=0.3, first_wait_s=0.01, longest_wait_s=0.02)


class Flaky(httpx2.BaseTransport):
    """Fails the first requests in the given ways, then sends them on."""

    def __init__(self, failures: list[Exception | httpx2.Response]) -> None:
        self.failures = failures
        self.num_requests = 0
        self._onward = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.num_requests += 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        return self._onward.handle_request(request)

    def close(self) -> None:
        self._onward.close()


def refused() -> httpx2.ConnectError:
    """What a transport raises where nobody listens."""
    error = httpx2.ConnectError("refused")
    error.__cause__ = ConnectionRefusedError()
    return error
