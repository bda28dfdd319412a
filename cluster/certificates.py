"""Make the certificates with which the nodes of one Ray cluster prove themselves to each other.

::

    python cluster/certificates.py ~/.qailab/tls 192.0.2.10 192.0.2.11 192.0.2.12
    python cluster/certificates.py ~/.qailab/tls 10.0.1.0/24    every address that a node may get

Writes ca.crt, node.crt and node.key. All nodes of the cluster share node.key, as they share Ray's
token. The authority's own key is not kept: for other addresses, make all of them anew. Needs the
program openssl.
"""

from __future__ import annotations

import argparse
import ipaddress
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_MOST_NAMES = 1024  # of a network: a certificate of 20 kB is sent with every connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to write; made if it is not there")
    parser.add_argument(
        "addresses", nargs="+", help="IP addresses, networks such as 10.0.1.0/24, or host names"
    )
    parser.add_argument("--days", type=int, default=365, help="how long they are valid (365)")
    options = parser.parse_args(arguments)
    if options.days < 1:
        parser.error(f"argument --days: expected at least 1, got {options.days}")
    try:
        names = sorted({"IP:127.0.0.1", "DNS:localhost", *names_of(options.addresses)})
    except ValueError as error:
        parser.error(str(error))
    try:
        make(options.directory, names, options.days)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        parser.exit(1, f"no certificates were made: {said}\n")
    sys.stdout.write(f"{options.directory}: ca.crt, node.crt, node.key for {len(names)} names\n")
    return 0


def names_of(addresses: Sequence[str]) -> Iterator[str]:
    """Each address as OpenSSL writes subject alternative names.

    Args:
        addresses: IP addresses, networks, or host names.

    Raises:
        ValueError: if a network has too many addresses, or is none.
    """
    for address in addresses:
        if "/" in address:
            network = ipaddress.ip_network(address)
            if network.num_addresses > _MOST_NAMES:
                raise ValueError(
                    f"{address} has {network.num_addresses:,} addresses; give one of at most "
                    f"{_MOST_NAMES:,}, for example {network.network_address}/24"
                )
            yield from (f"IP:{host}" for host in network.hosts())
            continue
        try:
            yield f"IP:{ipaddress.ip_address(address)}"
        except ValueError:
            if not address.replace("-", "").replace(".", "").isalnum():
                raise ValueError(f"{address!r} is no IP address, network or host name") from None
            yield f"DNS:{address}"


def make(directory: Path, names: Sequence[str], days: int) -> None:
    """Write an authority's certificate, and a key and certificate for all names.

    Args:
        directory: where to write.
        names: subject alternative names, as `names_of` gives them.
        days: how long the certificates are valid.

    Raises:
        subprocess.CalledProcessError: if openssl fails.
        OSError: if it is not there, or the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    key, certificate, authority = (directory / n for n in ("node.key", "node.crt", "ca.crt"))
    with tempfile.TemporaryDirectory() as scratch:  # of mode 0700: it holds the authority's key
        authority_key, request = Path(scratch, "ca.key"), Path(scratch, "node.csr")
        extensions = Path(scratch, "extensions")
        extensions.write_text(
            # Ray asks its clients for a certificate as well, and a node is both.
            f"extendedKeyUsage = serverAuth, clientAuth\nsubjectAltName = {', '.join(names)}\n"
        )
        new_key = ["-newkey", "rsa:2048", "-nodes"]
        _openssl(
            *["req", "-x509", *new_key, "-days", days, "-subj", "/CN=qailab authority"],
            *["-keyout", authority_key, "-out", authority],
        )
        _openssl("req", *new_key, "-subj", "/CN=qailab node", "-keyout", key, "-out", request)
        key.chmod(0o600)
        _openssl(
            *["x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key],
            *["-CAcreateserial", "-CAserial", Path(scratch, "serial"), "-days", days],
            *["-extfile", extensions, "-out", certificate],
        )


def _openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True, umask=0o077)


if __name__ == "__main__":
    sys.exit(main())
