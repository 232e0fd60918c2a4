"""Where a gallery is, a folder or a place on object storage, and what can be wrong there."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import lancedb

from asen_jax.errors import InputError
from asen_jax.files import lock

TABLE = 'photos'
S3 = 's3://'
# to look for a table, which LanceDB retries on top of these, so that a silent endpoint is reported in half a minute
S3_FIRST_CONTACT = {'client_max_retries': '0', 'connect_timeout': '3 seconds', 'timeout': '5 seconds'}
S3_CAUSES = (
    r'<Message>([^<]+)',
    '(no credentials)',
    r'(?:message|error): "([^"]+)',
    r'HttpError { kind: (\w+)',
    'HTTP error: ([^,]+)',
    r'(status: \d+)',
)


class DamageError(InputError):
    """A gallery cannot be read."""


def locate(gallery: str | os.PathLike) -> Path | str:
    """The folder of a gallery, or its address on object storage, which a Path would change."""
    text = os.fspath(gallery)
    if not text.startswith(S3):
        return Path(text).expanduser()
    if not text.removeprefix(S3).strip('/').partition('/')[2]:
        raise InputError(f'{text} does not name a gallery; write s3://BUCKET/NAME.')
    return text.rstrip('/')


def file_of(folder: Path | str, name: str) -> Path:
    """A file about a gallery: in its folder or, for one on object storage, in the current folder as GALLERY-name."""
    return folder / name if isinstance(folder, Path) else Path(f'{folder.rpartition("/")[2]}-{name}')


def is_gallery(folder: Path | str) -> bool:
    """Whether `folder` has a table, not only the beginning of one whose first commit was killed."""
    if isinstance(folder, Path):
        return any((folder / f'{TABLE}.lance/_versions').glob('*.manifest'))
    try:
        lancedb.connect(folder, storage_options=S3_FIRST_CONTACT).open_table(TABLE)
    except (OSError, RuntimeError, ValueError) as error:
        if str(error) == f"Table '{TABLE}' was not found":
            return False
        raise damage(folder, error) from error
    return True


@contextlib.contextmanager
def changing(folder: Path | str) -> Iterator[None]:
    """Hold the lock of the gallery's folder, which is created; object storage has none.

    LanceDB's errors during the change, as on a full disk, become ours.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder / '.lock', f'Another process is changing {folder}; wait for it.'))
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if not re.search('LanceError|namespace', str(error)):
                raise
            if isinstance(folder, str):
                raise damage(folder, error) from error
            fault = f'{folder} cannot be written ({first_line(error)})'
            raise InputError(f'{fault}; free space or fix its permissions, then run the same command again.') from error


def drop_torn_versions(folder: Path) -> None:
    """Set aside manifests that a power cut left empty, so that the previous version is used, and print what to do."""
    for manifest in sorted((folder / f'{TABLE}.lance/_versions').glob('*.manifest')):
        if manifest.stat().st_size:
            return  # the newest has the lowest name
        manifest.rename(manifest.with_suffix('.torn'))
        message = (
            f'{manifest} is empty, probably after a power cut; using the previous version. Run --mode index again.'
        )
        print(message, file=sys.stderr)


def damage(folder: Path | str, error: Exception) -> DamageError:
    """The error for a gallery that cannot be read."""
    if isinstance(folder, str):
        message = str(error).replace('Failed to get AWS credentials', 'no credentials')
        causes = (match[1] for cause in S3_CAUSES if (match := re.search(cause, message)))
        return DamageError(
            f'{folder} cannot be used ({next(causes, first_line(error))}); check the bucket and the environment variables '
            'AWS_ENDPOINT, AWS_ALLOW_HTTP, AWS_ACCESS_KEY_ID, and AWS_SECRET_ACCESS_KEY, then run the same command again.'
        )
    return DamageError(
        f'{folder} is damaged ({first_line(error)}); delete it and run --mode index --gallery={folder} again.'
    )


def first_line(error: Exception) -> str:
    """LanceDB's message without the list of columns and the place in its own sources."""
    return str(error).split('\n')[0].partition(', /')[0].partition('. Valid fields')[0].rstrip('.')
