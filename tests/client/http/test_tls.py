"""HTTPS at the gateway: with a certificate that is taken anew when it changes."""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarm_node.client.http.call import HttpCall
from swarm_node.client.http.connection import MAX_HEADER_BYTES
from swarm_node.client.http.endpoint import Endpoint
from swarm_node.client.http.listening import listen, open_host
from swarm_node.client.http.server import HttpServer
from swarm_node.client.http.tls import Tls, tls_of
from swarm_node.swarm.errors import UsageError
from tests import ROOT

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def write_certificate(folder: Path, name: str, *, password: bytes | None = None) -> tuple[Path, Path]:
    """A self-signed one for ``name``, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    sealed = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    pem = serialization.Encoding.PEM
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, sealed))
    return paths


async def hello(call: HttpCall) -> None:
    await call.reply("{}")


async def test_what_was_renewed_is_shown_to_new_connections(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    tls = Tls(certificate, key)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=tls) as server:
        assert server.url == f"https://localhost:{port}"

        async def shown() -> bytes:
            context = ssl.create_default_context(cafile=str(certificate))
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            told = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            return told

        context = ssl.create_default_context(cafile=str(certificate))
        async with httpx2.AsyncClient(verify=context) as client:
            assert (await client.get(server.url)).status_code == 200
        first = await shown()
        key.write_text("half written")
        tls.refresh()
        assert await shown() == first, "what cannot be used changes nothing"
        write_certificate(tmp_path, "localhost")
        tls.refresh()
        second = await shown()
        assert second != first
        tls.refresh()
        assert await shown() == second


def test_files_that_change_while_they_are_taken_anew_end_no_server(tmp_path: Path) -> None:
    class Interrupted(Tls):
        """The key's file is written anew between a look at it and its use."""

        def _load_into(self, context: ssl.SSLContext) -> None:
            super()._load_into(context)
            key.write_text("half written")

    certificate, key = write_certificate(tmp_path, "localhost")
    tls = Interrupted(certificate, key)
    write_certificate(tmp_path, "localhost")
    tls.refresh()


async def test_a_head_that_is_too_large_is_refused_over_tls_too(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=Tls(certificate, key)):
        context = ssl.create_default_context(cafile=str(certificate))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        writer.write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (MAX_HEADER_BYTES + 1) + b"\r\n\r\n"
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")
        writer.close()
        plain_reader, plain = await asyncio.open_connection("127.0.0.1", port)
        plain.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await plain_reader.read() == b"", "who does not speak TLS gets nothing"
        plain.close()


def test_what_is_no_certificate(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    assert tls_of(None, None) is None
    with pytest.raises(UsageError, match="--tls-key is not given"):
        tls_of(str(certificate), None)
    with pytest.raises(UsageError, match="cannot be read"):
        tls_of(str(tmp_path / "none"), str(key))
    with pytest.raises(UsageError, match="do not make a server's certificate"):
        tls_of(str(key), str(certificate))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="it is not a file"):
            tls_of(str(certificate), str(path))
    write_certificate(tmp_path, "localhost", password=b"secret")
    with pytest.raises(UsageError, match="do not make a server's certificate"):
        tls_of(str(certificate), str(key))


def test_a_wrong_certificate_is_told_at_once(tmp_path: Path) -> None:
    words = ["gateway", "--port", "0", "--tls-cert", str(tmp_path / "none"), "--tls-key", "k"]
    program = [sys.executable, "-m", "swarm_node.node.cli", *words]
    ran = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: {tmp_path / 'none'} cannot be read")


@pytest.mark.parametrize(("host", "url_host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_a_url_names_the_address(host: str, url_host: str) -> None:
    assert open_host(host) == url_host


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_is_shown_as_one_that_can_be_opened(host: str) -> None:
    assert open_host(host) not in ("0.0.0.0", "[::]")
