from __future__ import annotations

import socket
import threading
import time

import pytest

from nas_jax.parallel.processes import Processes, roll_call
from nas_jax.utils.errors import ConfigError, HostError


def free_port():
    while True:
        with socket.create_server(("", 0)) as one:
            port = one.getsockname()[1]
            try:
                socket.create_server(("", port + 1)).close()
            except OSError:
                continue
            return port


def call(indices, count, timeout, late=()):
    """What each process of a roll call ends with: None or its error."""
    coordinator, results = f"localhost:{free_port()}", {}

    def one(index):
        if index in late:
            time.sleep(0.8)
        try:
            results[index] = roll_call(Processes(coordinator, count, index, timeout))
        except HostError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_are_there_whoever_comes_last():
    assert call(range(4), 4, 20, late=(0, 2)) == dict.fromkeys(range(4))


def test_the_missing_are_named_on_every_process():
    results = call((0, 1, 3), 5, 2)
    assert results.keys() == {0, 1, 3}
    for text in results.values():
        assert "3 of 5 processes after 2 s; missing: 2, 4; expected all of them" in text


def test_without_the_first_the_others_say_where_they_looked():
    (text,) = call((1,), 2, 1).values()
    assert "process 1 could not reach process 0 at localhost:" in text and "--coordinator" in text


def test_a_stranger_on_the_port_does_no_harm():
    port = free_port()
    first = threading.Thread(target=roll_call, args=(Processes(f"localhost:{port}", 2, 0, 20),))
    first.start()
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"7 2\n", b""):
        for _ in range(100):
            try:
                with socket.create_connection(("localhost", port + 1)) as stranger:
                    stranger.sendall(words)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    roll_call(Processes(f"localhost:{port}", 2, 1, 20))
    first.join(10)
    assert not first.is_alive()


@pytest.mark.parametrize(
    ("given", "match"), [(("host", 2, 0), "HOST:PORT or auto"), (("host:1", 2, 2), "count from 0")]
)
def test_flags_that_cannot_be(given, match):
    with pytest.raises(ConfigError, match=match):
        Processes(*given).validate()
