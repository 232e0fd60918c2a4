"""Compiled programs, kept in the user's cache folder, so that the next command need not compile them again."""

import contextlib
import os
import re
import warnings
from pathlib import Path

MAX_BYTES = 2**30
NOTICE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)'")  # a warning of JAX


def use_cache(enabled: bool = True) -> None:
    """Let JAX keep compiled programs, in the folder JAX_COMPILATION_CACHE_DIR if there is one; call before JAX is imported.

    The settings are environment variables, which JAX reads when it is imported, here and in the processes of a Ray cluster.
    """
    if not enabled:
        os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
        return
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            folder = cache_folder()
            folder.mkdir(0o700, parents=True, exist_ok=True)  # programs are code: only the user may write them
            remove_oldest(folder)
        except (OSError, RuntimeError):  # no home folder, or one that cannot be written: compile each time
            return
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')  # many small programs add up, too
    replace_damaged(Path(os.environ['JAX_COMPILATION_CACHE_DIR']))


def cache_folder() -> Path:
    """Where programs are kept: asen_jax/compiled in XDG_CACHE_HOME or ~/.cache; RuntimeError if there is no home folder."""
    root = Path(os.environ.get('XDG_CACHE_HOME', ''))
    root = root if root.is_absolute() else Path('~/.cache').expanduser()  # the XDG specification ignores relative ones
    return root / 'asen_jax' / 'compiled'


def remove_oldest(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove the files that were used least recently until the others have at most `max_bytes`.

    JAX's own limit needs another package, and fails for good once a process was killed between its two files of an entry.
    """
    found = []
    for path in folder.rglob('*'):
        with contextlib.suppress(FileNotFoundError):  # another command has just removed it
            if path.is_file():
                found.append((path, path.stat()))
    for path, state in sorted(found, key=lambda each: max(each[1].st_atime, each[1].st_mtime), reverse=True):
        max_bytes -= state.st_size
        if max_bytes < 0:
            path.unlink(missing_ok=True)


def replace_damaged(folder: Path) -> None:
    """Let JAX replace a program that it cannot read, as after a killed write; JAX itself would warn of it every time."""
    show = warnings.showwarning

    def remove(message, *args, **kwargs) -> None:
        notice = NOTICE.match(str(message))
        if not notice:
            show(message, *args, **kwargs)
        elif notice[1] == 'reading':  # JAX now compiles the program, and writes it if it is not there
            for path in folder.glob(f'{notice[2]}-*'):
                with contextlib.suppress(OSError):
                    path.unlink()

    warnings.showwarning = remove
