"""The certificates of connections to L2."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths, empty where there is none: whom to trust, and who we are."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def redis_options(self) -> dict[str, Any]:
        """Return redis-py's options; the server's certificate and its name are always checked."""
        return {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": self.ca_file or None,
            "ssl_certfile": self.cert_file or None,
            "ssl_keyfile": self.key_file or None,
        }

    def context(self) -> ssl.SSLContext:
        """Return the same as a context.

        Raises:
            OSError: a file cannot be read, or is no certificate.
        """
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context
