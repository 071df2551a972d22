"""``--env-file``: variables from a file, which fill in for those that are not set."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping

from ._errors import usage

# A device, or the wrong file: nobody has so many settings.
MAX_FILE = 1 << 20

# What was taken over, by variable: the environment itself does not tell, and is of the whole process too.
_taken: dict[str, str] = {}


def read_env_file(path: str) -> None:
    """Take over the variables that are not set yet.

    Raises:
        CommandError: the file cannot be read.
    """
    from dotenv import dotenv_values

    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 5 ms at the start of every command
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise OSError(errno.EFBIG, f"larger than {MAX_FILE} characters")
        values = dotenv_values(stream=io.StringIO(content), interpolate=False)
    except (OSError, UnicodeDecodeError) as exc:
        raise usage(f"--env-file {path} cannot be read", str(exc), "lines of NAME=VALUE") from exc
    _taken.clear()
    for name, value in values.items():
        if value is not None and name not in os.environ:
            os.environ[name] = value
            _taken[name] = path


def taken_from_file() -> Mapping[str, str]:
    """Return the variables that a file filled in for, and its path."""
    return _taken
