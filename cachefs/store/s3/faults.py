"""What an S3 server's failures mean here: an outage, a missing object, a refusal, or damage.

All exceptions of botocore and urllib3 end in this file. What can pass is StoreUnavailableError.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as botocore_errors
from urllib3 import exceptions as urllib3_errors

from cachefs.errors import (
    CachefsError,
    ConflictError,
    CorruptError,
    ObjectMissingError,
    StoreRefusedError,
    StoreUnavailableError,
)

_PASSING_CODES = frozenset(
    ["SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "BadDigest"]
)
"""Whatever their status: each was seen with 400, and once with 200."""

TOO_SKEWED = "RequestTimeTooSkewed"
"""The clock of this host, or the server's, is wrong: it passes when either is set, and requests
that are signed here learn from it (signature.py)."""

_PASSING_STATUSES = frozenset([408, 425, 429])
_CONFLICT_STATUSES = frozenset([409, 412])
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_ERROR_BODY = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<Error\b")

_ADVICE = {
    401: "check the credentials (AWS_ACCESS_KEY_ID, ~/.aws, s3.profile, s3.credentials_file)",
    403: "check credentials and rights, and the clock of this host",
    301: "check s3.region and s3.endpoint",
    400: "check s3.region and s3.endpoint",
    501: "the server does not know this request",
}


def is_error_body(data: bytes | memoryview) -> bool:
    """Return whether the beginning of an answer is S3's XML for an error; no object of ours is."""
    return _ERROR_BODY.match(bytes(data[:512])) is not None


def code_in(body: bytes | memoryview) -> str:
    """Return the error code that a body of XML names, or nothing."""
    found = _CODE.search(bytes(body[:4096]))
    return found[1].decode(errors="replace") if found else ""


def answered(status: int, code: str, what: str) -> CachefsError:
    """Return the error for an answer that is no success.

    Args:
        status: Of HTTP.
        code: Of S3, as `SlowDown`; may be empty.
        what: What was asked for, as in `read s3://bucket/key`.
    """
    said = f"{status} {code}".strip()
    if code == "NoSuchBucket":
        return StoreRefusedError(
            f"cannot {what}: there is no such bucket: make it, or check s3.endpoint and s3.region"
        )
    if code == TOO_SKEWED:
        return StoreUnavailableError(
            f"cannot {what}: the server answered {said}: set the clock of this host"
        )
    if status == 404:
        return ObjectMissingError(f"cannot {what}: there is no such object")
    if status == 416:
        return CorruptError(f"cannot {what}: the object is cut short, it ends before that")
    if code in _PASSING_CODES or status in _PASSING_STATUSES or status < 300:
        return StoreUnavailableError(f"cannot {what}: the server answered {said}")
    if status in _CONFLICT_STATUSES:
        return ConflictError(f"cannot {what}: somebody else changed it ({said}): try again")
    if status >= 500 and status != 501:
        return StoreUnavailableError(f"cannot {what}: the server answered {said}")
    advice = _ADVICE.get(status, "see the server's log")
    return StoreRefusedError(f"cannot {what}: the server answered {said}: {advice}")


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn what botocore and urllib3 raise into the errors of cachefs.

    Args:
        what: As for `answered`.
    """
    try:
        yield
    except botocore_errors.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        raise answered(status, error.response.get("Error", {}).get("Code", ""), what) from error
    except (botocore_errors.SSLError, ssl.SSLError) as error:
        if "certificate" in str(error).lower():
            raise StoreRefusedError(
                f"cannot {what}: the server's certificate is not trusted: see s3.ca_file ({error})"
            ) from error
        raise StoreUnavailableError(f"cannot {what}: {error}") from error
    except (
        botocore_errors.NoCredentialsError,
        botocore_errors.PartialCredentialsError,
        botocore_errors.CredentialRetrievalError,
        botocore_errors.ProfileNotFound,
        botocore_errors.NoRegionError,
        botocore_errors.ParamValidationError,
        botocore_errors.UnauthorizedSSOTokenError,
    ) as error:
        raise StoreRefusedError(f"cannot {what}: {error}: {_ADVICE[401]}") from error
    except (
        botocore_errors.BotoCoreError,
        urllib3_errors.HTTPError,
        OSError,
    ) as error:
        raise StoreUnavailableError(f"cannot {what}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return what went wrong without the names of classes that only a programmer knows."""
    text = str(error) or type(error).__name__
    return text.removesuffix(".")
