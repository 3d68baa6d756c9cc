import socket

import pytest

from replay_service.gateway.listening import AddressInUse, listeners


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_every_address_of_a_host_is_listened_on_at_one_port(host: str) -> None:
    known = {each[4][0] for each in socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)}
    sockets = listeners(host, 0)
    try:
        assert {each.getsockname()[0] for each in sockets if each.family == socket.AF_INET} <= known
        assert len({each.getsockname()[0] for each in sockets}) == len(sockets) > 0
        (port,) = {each.getsockname()[1] for each in sockets}
        assert port > 0
    finally:
        for each in sockets:
            each.close()


def test_a_port_in_use_is_refused_and_nothing_stays_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port} cannot be listened on: Address already in use; stop"):
            listeners("127.0.0.1", port)
    (again,) = listeners("127.0.0.1", port)
    again.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        AddressInUse, match=r"192\.0\.2\.1:8400 cannot be listened on: Cannot assign requested address$"
    ):
        listeners("192.0.2.1", 8400)


def test_a_name_that_nobody_has_is_refused() -> None:
    with pytest.raises(AddressInUse, match=r"nobody\.invalid:8400 cannot be listened on: "):
        listeners("nobody.invalid", 8400)
