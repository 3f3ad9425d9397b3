"""TLS contexts for tests, from a certificate for localhost, 127.0.0.1 and ::1 that is good for a hundred years."""

from __future__ import annotations

import ssl
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "tls"


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FOLDER / "certificate.pem", FOLDER / "key.pem")
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(FOLDER / "certificate.pem"))
