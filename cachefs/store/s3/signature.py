"""Signs GETs of ranges as AWS Signature Version 4 wants it, with the same result as botocore's.

botocore's signer builds, sorts and quotes each request anew, in Python. Of a GET of a
range all is known beforehand but path, range, time and token; and the key that signs is the same
for a day (docs/decisions/0033). Where credentials come from, and when they are renewed, is
botocore's business. Safe for threads: what is kept is replaced as a whole.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from botocore.credentials import ReadOnlyCredentials

_SERVICE = "s3"
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
"""Of the body of a GET."""
_SIGNED = "host;range;x-amz-content-sha256;x-amz-date"


class _DayKey(NamedTuple):
    secret: str
    day: str
    key: bytes


class Signer:
    """Signs for one server."""

    def __init__(self, host: str, region: str) -> None:
        """Prepare.

        Args:
            host: What the header Host says: with a port, unless it is the scheme's own.
            region: As the server calls it.
        """
        self._host = host
        self._region = region
        self._day_key = _DayKey("", "", b"")
        self._server_ahead_s = 0.0
        """Of this host's clock; 0 until a server minds."""

    def set_clock(self, date: str) -> None:
        """Sign with the time of a server that finds ours too far from its own.

        Args:
            date: The header Date of its answer; what is no date changes nothing.
        """
        try:
            server_s = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        self._server_ahead_s = server_s - time.time()

    def headers(
        self,
        credentials: ReadOnlyCredentials,
        path: str,
        byte_range: str,
        now_s: float | None = None,
    ) -> dict[str, str]:
        """Return the headers of a signed GET, all but Host.

        Args:
            credentials: Of now; a token goes along.
            path: Of the URL, quoted as it is sent.
            byte_range: The header Range.
            now_s: The time that is signed; None: now, on the server's clock.
        """
        if now_s is None:
            now_s = time.time() + self._server_ahead_s
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        signed = _SIGNED
        lines = (
            f"host:{self._host}\nrange:{byte_range}\n"
            f"x-amz-content-sha256:{_EMPTY_SHA256}\nx-amz-date:{now}\n"
        )
        headers = {"Range": byte_range, "X-Amz-Date": now, "X-Amz-Content-SHA256": _EMPTY_SHA256}
        if token := credentials.token:
            signed += ";x-amz-security-token"
            lines += f"x-amz-security-token:{' '.join(token.split())}\n"
            headers["X-Amz-Security-Token"] = token
        canonical = f"GET\n{path}\n\n{lines}\n{signed}\n{_EMPTY_SHA256}"
        scope = f"{now[:8]}/{self._region}/{_SERVICE}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        secret = credentials.secret_key or ""
        signature = _sign(self._key(secret, now[:8]), text).hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return headers

    def _key(self, secret: str, day: str) -> bytes:
        kept = self._day_key
        if kept.secret != secret or kept.day != day:
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, _SERVICE, "aws4_request"):
                key = _sign(key, part)
            kept = self._day_key = _DayKey(secret, day, key)
        return kept.key


def _sign(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
