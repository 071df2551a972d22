"""The check-up of the record directory: whose it is, who may write there, whether its clock is ours, and what lies in
it.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

from .._text import printable
from ..discovery._directory import INSTANCES, RecordDirectory
from ..discovery.file import DEFAULT_EXPIRY
from ._findings import Finding, fail, ok, warn
from ._screen import short_path

TOPIC = "discovery"

# Released callers take a record for dead by comparing its file's time with their own clock.
_SKEW_FAILS = DEFAULT_EXPIRY / 2
_SKEW_WARNS = 1.0

_SHOWN = 3


def check_directory(base: Path) -> list[Finding]:
    """Look at the directory that ``DYN_FILE_KV`` or ``--file-kv`` names; blocks, leaves nothing behind."""
    where = short_path(base)
    directory = base / INSTANCES
    if not base.exists():
        return [_check_parent(base, where)]
    if not base.is_dir():
        return [fail(TOPIC, f"{where} is no directory", "--file-kv with the path of one")]
    existing = next(path for path in (directory, directory.parent, base) if path.is_dir())
    findings = [finding for path in (base, *directory.parents[:1], directory) for finding in _check_owner(path)]
    return [*findings, *_check_writing(existing, where), *_check_records(base, where)]


def _check_parent(base: Path, where: str) -> Finding:
    parent = next(path for path in base.parents if path.exists())
    try:
        Path(tempfile.mkdtemp(dir=parent, prefix=".tmp_doctor_")).rmdir()
    except OSError as exc:
        text = f"{where} is not there and cannot be made: {exc.strerror or exc}"
        return fail(TOPIC, text, f"leave to write in {short_path(parent)}, or another directory with --file-kv")
    return ok(TOPIC, f"{where} is not there yet; the first worker makes it")


def _check_owner(path: Path) -> list[Finding]:
    """Whoever may write here says where prompts go."""
    if not path.is_dir() or not hasattr(os, "geteuid"):
        return []
    status, where = path.stat(), short_path(path)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (os.geteuid(), 0):
        text = f"{where} belongs to user {status.st_uid} and we are {os.geteuid()}"
        return [fail(TOPIC, text, "a directory of the user that the workers and callers run as")]
    if mode & stat.S_IWOTH:
        return [fail(TOPIC, f"{where} can be written by everybody (mode {mode:o})", f"chmod o-w {where}")]
    if mode & stat.S_IWGRP:
        return [warn(TOPIC, f"{where} can be written by its group (mode {mode:o})", f"chmod g-w {where}")]
    return []


def _check_writing(directory: Path, where: str) -> list[Finding]:
    """Write a file as a worker does, and compare the time it is given with our clock."""
    before = time.time()
    try:
        # Released peers leave names with a leading dot alone.
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".tmp_doctor_") as file:
            file.write(b"{}")
            file.flush()
            os.fsync(file.fileno())
            written_at = os.fstat(file.fileno()).st_mtime
    except OSError as exc:
        text = f"{where} cannot be written: {exc.strerror or exc}"
        return [fail(TOPIC, text, "leave to write there, and space; or another directory with --file-kv")]
    skew = max(before - written_at, written_at - time.time(), 0.0)
    text = f"the clock of {where} differs from ours by {skew:.1f} s"
    remedy = "NTP on this host and on the file server: callers take records for dead after 10 s"
    if skew > _SKEW_FAILS:
        return [fail(TOPIC, text, remedy)]
    return [warn(TOPIC, text, remedy)] if skew > _SKEW_WARNS else [ok(TOPIC, f"{where} can be written")]


def _check_records(base: Path, where: str) -> list[Finding]:
    try:
        directory = RecordDirectory(base.resolve(), create=False)
    except FileNotFoundError:
        return []
    except OSError as exc:
        return [fail(TOPIC, f"{where} cannot be listed: {exc.strerror or exc}", "leave to read it")]
    try:
        entries = directory.scan()
    except OSError as exc:
        return [fail(TOPIC, f"{where} cannot be listed: {exc.strerror or exc}", "leave to read it")]
    finally:
        directory.close()
    now = time.time()
    ages = {name: now - entry.mtime_ns / 1e9 for name, entry in entries.items() if entry.refusal is None}
    stale = sorted((name for name, age in ages.items() if age > DEFAULT_EXPIRY), key=lambda name: -ages[name])
    odd = sorted(f"{name}: {entry.refusal}" for name, entry in entries.items() if entry.refusal is not None)
    findings = []
    if stale:
        text = (
            f"{len(stale)} stale, of workers that were killed: {_listed(stale)}; the oldest for {ages[stale[0]]:.0f} s"
        )
        findings.append(warn("records", text, f"callers pass over them; rm them in {short_path(directory.path)}"))
    if odd:
        text = f"{len(odd)} that nobody reads: {_listed(odd)}"
        findings.append(warn("records", text, f"remove them from {short_path(directory.path)}"))
    fresh = len(ages) - len(stale)
    return findings or [ok("records", f"{fresh} fresh, none stale")]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, 120) for name in names[:_SHOWN]) + more
