"""The certificate of an HTTP server. It is taken anew when its files change: certificates last some months,
and a server runs for longer."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import stat
from os import PathLike
from pathlib import Path

from ...swarm.errors import UsageError

logger = logging.getLogger(__name__)

MAX_CERTIFICATE_BYTES = 1 << 20


class Tls:
    """``context``: what the server's connections take, those that begin after a ``refresh`` too."""

    def __init__(self, certificate: str | PathLike[str], key: str | PathLike[str]) -> None:
        """PEM files; ``certificate`` with the chain behind it. Raises UsageError."""
        self._certificate, self._key = Path(certificate), Path(key)
        self.context = _new_context()
        self._load_into(self.context)
        self._seen = self._state()

    @property
    def name(self) -> str:
        """The first name that the certificate is for, of those that lead to one host; "" if there is none."""
        from cryptography import x509  # here: only a server with a certificate needs it

        with contextlib.suppress(ValueError, x509.ExtensionNotFound):
            found = x509.load_pem_x509_certificate(self._certificate.read_bytes())
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return next((name for name in names.get_values_for_type(x509.DNSName) if "*" not in name), "")
        return ""

    def refresh(self) -> None:
        """Take the files anew if they have changed. Those that cannot be used are logged, and change nothing:
        a renewal writes two files, one after the other."""
        if (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._load_into(_new_context())  # before what is in use is touched
            self._load_into(self.context)
        except UsageError as error:
            logger.warning("event=certificate_unusable error=%r", error.message)
            return
        logger.info("event=certificate_renewed")

    def _load_into(self, context: ssl.SSLContext) -> None:
        """Raises UsageError."""
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
            except OSError as error:
                raise UsageError(
                    f"{path} cannot be read: {error.strerror or error}",
                    hint="Give --tls-cert and --tls-key PEM files.",
                ) from None
            if not stat.S_ISREG(status.st_mode):  # OpenSSL would wait for the writer of a pipe
                raise UsageError(
                    f"{path} is no certificate or key: it is not a file",
                    hint="Give --tls-cert and --tls-key PEM files.",
                )
            if status.st_size > MAX_CERTIFICATE_BYTES:
                raise UsageError(f"{path} is no certificate or key: it has {status.st_size} bytes")
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise UsageError(
                f"{self._certificate} and {self._key} do not make a server's certificate: {error}",
                hint="Both are PEM files; the key is not encrypted, and belongs to the certificate.",
            ) from None

    def _state(self) -> tuple[tuple[int, int], ...]:
        found = []
        for path in (self._certificate, self._key):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_size))
        return tuple(found)


def tls_of(certificate: str | None, key: str | None) -> Tls | None:
    """None where neither is given. Raises UsageError."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise UsageError(f"TLS needs a certificate and its key: {missing} is not given", hint="Give both.")
    return Tls(certificate, key)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    """In place of OpenSSL, which would ask for it at the terminal."""
    raise ValueError("the key is encrypted")
