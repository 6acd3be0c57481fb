import pytest
from pytest_socket import disable_socket


@pytest.fixture(autouse=True)
def no_sockets():
    """The unit suite opens no network connection; the event loop's own socket pair is allowed."""
    disable_socket(allow_unix_socket=True)
    yield
    import pytest_socket

    pytest_socket.enable_socket()
