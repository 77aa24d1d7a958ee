"""What a store says beside bytes, as one sentence of ours: errors of disks, obstore, s3fs and what these stand on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from thinkdiff.schemas.errors import RootError, ThinkDiffError
from thinkdiff.storage.bucket import EXPIRED, reason


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Raises RootError in one sentence for what a store answers beside bytes and FileNotFoundError."""
    try:
        yield
    except (ThinkDiffError, FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        raise RootError(
            f"{path}: found no answer that can be used ({cause(error)}), expected its bytes. Nothing is lost; look at "
            "the disk, the endpoint or the credentials and run the command again."
        ) from error


def scheme_of(uri: str) -> str:
    """The scheme of a URL. Raises RootError, without repeating it, for a URL with a user or a password in it."""
    scheme, _, rest = uri.partition("://")
    if "@" in rest.split("/", 1)[0]:
        raise RootError(
            f"root: found a user or a password in a URL of {scheme:.20}, expected none. Records and logs repeat it; "
            "put credentials where the client looks for them (for s3 the AWS variables and files)."
        )
    return scheme


def unwritable(uri: str, error: Exception) -> RootError:
    """The sentence for a root that refused a write."""
    return RootError(
        f"{uri}: found it not writable ({cause(error)}), expected a folder or bucket that this user can write."
    )


def cause(error: Exception) -> str:
    """What went wrong, in a phrase."""
    code = s3fs_code(error)
    said = getattr(error, "strerror", None) or reason(error) or type(error).__name__
    return " ".join(f"{code}: {said}".split()) if code else " ".join(str(said).split())


def precondition_failed(error: Exception) -> bool:
    """Whether S3 refused a conditional write because the object is there (servers differ in the error's shape)."""
    refused = s3fs_code(error) in ("PreconditionFailed", "ConditionalRequestConflict")
    return refused or (isinstance(error, OSError) and error.errno == errno.EEXIST)


def s3fs_code(error: Exception) -> str:
    """The S3 error code behind an exception of s3fs, "" when there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def expired(error: Exception) -> bool:
    """Whether S3 may have refused credentials that were good once; to a HEAD it does not say why."""
    return s3fs_code(error) in (*EXPIRED, "403")
