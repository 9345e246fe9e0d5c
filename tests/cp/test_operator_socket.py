"""The operator's socket: who may come, and that long paths do not matter."""

import os
import pathlib
import socket
import stat

import pytest
from tests.leaks import assert_none_left, descriptors

from retinue.cp.operator_socket import (
    NAME,
    Peer,
    StrangePeer,
    check_peer,
    connect_operator,
    listen_operator,
    peer_of,
)


@pytest.fixture
def deep(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder whose path is longer than the address of a UNIX socket may be."""
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    assert len(os.fsencode(folder)) > 108
    return folder


def test_operator_connects_through_a_path_of_any_length(deep: pathlib.Path) -> None:
    with listen_operator(deep) as listener, connect_operator(deep) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.send(b"one")
            ours.send(b"two")
            assert [theirs.recv(100), theirs.recv(100)] == [b"one", b"two"]  # boundaries are kept
            assert peer_of(theirs) == Peer(os.getpid(), os.geteuid(), os.getegid())
            assert not listener.getblocking()
            assert not ours.getblocking()
            assert not os.get_inheritable(ours.fileno())


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_socket_is_private_whatever_the_umask(umask: int, deep: pathlib.Path) -> None:
    before = os.umask(umask)
    try:
        with listen_operator(deep):
            assert stat.S_IMODE((deep / NAME).stat().st_mode) == 0o600
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_a_socket_that_was_left_behind_is_replaced(deep: pathlib.Path) -> None:
    listen_operator(deep).close()
    with pytest.raises(ConnectionRefusedError):
        connect_operator(deep)
    with listen_operator(deep), connect_operator(deep):
        pass


def test_connecting_where_nobody_is_raises(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_operator(tmp_path)
    with pytest.raises(FileNotFoundError):
        listen_operator(tmp_path / "missing")


def test_no_descriptor_is_left_open(deep: pathlib.Path) -> None:
    before = descriptors()
    with listen_operator(deep), connect_operator(deep):
        assert len(descriptors() - before) == 2
    with pytest.raises(ConnectionRefusedError):
        connect_operator(deep)
    assert_none_left(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_peer_of_another_user_is_strange() -> None:
    os.seteuid(65534)
    try:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    finally:
        os.seteuid(0)
    with one, other, pytest.raises(StrangePeer, match="user with id 65534") as caught:
        check_peer(one)
    assert caught.value.peer.uid == 65534


def test_a_peer_of_root_or_of_ours_is_no_stranger() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert check_peer(one).pid == os.getpid()
