"""certificates.py: what it writes is believed by who should, for the addresses it should."""

import shutil
import ssl
import subprocess
import sys

import pytest

from tests.cluster.files import CLUSTER

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl")


def make(*arguments):
    return subprocess.run(
        [sys.executable, CLUSTER / "certificates.py", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "made"
    done = make(path, "192.0.2.10", "198.51.100.0/29", "head.example.com", "2001:db8::7")
    assert done.returncode == 0, done.stderr
    return path


def handshake(folder, other, name):
    """Both sides show and check certificates, as Ray's do."""
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    client.load_cert_chain(folder / "node.crt", folder / "node.key")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=other / "ca.crt")
    server.load_cert_chain(other / "node.crt", other / "node.key")
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for i, side in enumerate(sides):
            try:
                side.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
    assert all(done)


@pytest.mark.parametrize(
    "name",
    ["192.0.2.10", "198.51.100.6", "head.example.com", "2001:db8::7", "127.0.0.1", "localhost"],
)
def test_nodes_believe_each_other(folder, name):
    handshake(folder, folder, name)


def test_no_other_address_is_believed(folder):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"192\.0\.2\.11"):
        handshake(folder, folder, "192.0.2.11")


def test_no_other_cluster_is_believed(folder, tmp_path):
    make(tmp_path, "192.0.2.10")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, tmp_path, "192.0.2.10")


def test_the_authoritys_key_is_not_kept(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "node.crt", "node.key"]
    assert (folder / "node.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("10.0.0.0/16", "65,536 addresses"),
        ("10.0.0.1/24", "has host bits set"),
        ("no address", "no IP address, network or host name"),
    ],
)
def test_wrong_addresses_are_refused(tmp_path, address, said):
    done = make(tmp_path / "made", address)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    done = make(tmp_path / "file" / "made", "192.0.2.10")
    assert done.returncode == 1
    assert "no certificates were made" in done.stderr
