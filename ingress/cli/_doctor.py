"""``ingress doctor``: check what a worker needs of its surroundings, one line each, with what to do."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from rich.text import Text

from .._text import printable
from .._worker_options import DEFAULT_PLANE
from ..discovery import default_directory
from ._doctor_discovery import check_directory
from ._doctor_machine import check_clock, check_descriptors, check_libraries, check_plugins, check_python
from ._doctor_network import check_request_address, check_status_port
from ._doctor_variables import check_variables, names_we_read
from ._errors import EXIT_CLEAN, EXIT_FAILED
from ._findings import Finding, Verdict, fail, ok
from ._options import DEFAULT_BACKEND, DEFAULT_DISCOVERY, DEFAULT_OUTPUT, AsJson, DiscoveryOptions, OutputOptions
from ._payloads import print_document
from ._status_options import DEFAULT_STATUS, StatusFlags
from ._worker_flags import DEFAULT_WORKER, WorkerFlags

SCHEMA = "ingress.doctor/1"

# A file server that is away, or a plug-in that sleeps when it is imported.
CHECK_TIMEOUT = 15.0

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
_TOPIC_WIDTH = 12
_MAX_TEXT = 400

Check = Callable[[], Awaitable[list[Finding]]]


def doctor(
    *,
    worker: WorkerFlags = DEFAULT_WORKER,
    status: StatusFlags = DEFAULT_STATUS,
    discovery: DiscoveryOptions = DEFAULT_DISCOVERY,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Check what a worker needs of its surroundings.

    Takes the options and variables of `ingress serve` and looks whether a worker could live with them. One line a
    finding: ok, warn or fail, and what to do. Ends with 1 where something fails.
    """
    output.set_up_logging()
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json and not (output.quiet and finding.verdict is Verdict.OK):
            output.stdout().print(as_line(finding), soft_wrap=True)

    trio.run(_run_checks, _checks(worker, status, discovery), tell)
    if as_json:
        print_document(as_document(findings))
    elif not output.quiet:
        output.stderr().print(_summary(findings), style="dim", soft_wrap=True)
    return EXIT_FAILED if any(finding.is_failure for finding in findings) else EXIT_CLEAN


def _checks(worker: WorkerFlags, status: StatusFlags, discovery: DiscoveryOptions) -> list[tuple[str, Check]]:
    return [
        ("python", _in_thread(check_python)),
        ("libraries", _in_thread(check_libraries)),
        ("variables", _in_thread(lambda: check_variables(os.environ, names_we_read()))),
        ("clock", _in_thread(check_clock)),
        ("descriptors", _in_thread(lambda: _check_descriptors(worker))),
        ("discovery", _in_thread(lambda: _check_discovery(discovery))),
        ("address", partial(_check_address, worker)),
        ("status", partial(check_status_port, status.status_host, status.status_port)),
        ("plug-ins", _in_thread(check_plugins)),
    ]


def _check_descriptors(worker: WorkerFlags) -> list[Finding]:
    return check_descriptors(worker.engine_request_limit, worker.request_queue_limit, worker.max_connections)


def _check_discovery(discovery: DiscoveryOptions) -> list[Finding]:
    if discovery.discovery != DEFAULT_BACKEND:
        return [ok("discovery", f"{discovery.discovery}: no directory to look at")]
    return check_directory(default_directory(discovery.environ).absolute())


async def _check_address(worker: WorkerFlags) -> list[Finding]:
    if worker.plane != DEFAULT_PLANE:
        return [ok("address", f"plane {worker.plane}: no address of this host to look at")]
    return await check_request_address(worker.host, worker.port, worker.advertise)


def _in_thread(check: Callable[[], list[Finding]]) -> Check:
    return partial(trio.to_thread.run_sync, check, abandon_on_cancel=True)


async def _run_checks(checks: list[tuple[str, Check]], tell: Callable[[Finding], None]) -> None:
    """Run one after the other; one that breaks or hangs is a finding like any other."""
    for topic, check in checks:
        findings = [
            fail(topic, f"no answer within {CHECK_TIMEOUT:g} s", "see what its file system or plug-ins wait for")
        ]
        with trio.move_on_after(CHECK_TIMEOUT):
            try:
                findings = await check()
            except Exception as exc:
                text = f"cannot be checked: {type(exc).__name__}: {exc}"
                findings = [fail(topic, printable(text, _MAX_TEXT), "the text says what is in the way")]
        for finding in findings:
            tell(finding)


def as_line(finding: Finding) -> Text:
    """``warn  descriptors  a limit of 1024; … → ulimit -n 4224``."""
    line = Text.assemble(
        (finding.verdict.value.ljust(6), _STYLES[finding.verdict]),
        finding.topic.ljust(_TOPIC_WIDTH),
        " ",
        printable(finding.text, _MAX_TEXT * 2),
    )
    return line.append(f" → {printable(finding.remedy, _MAX_TEXT)}", "bold") if finding.remedy else line


def as_document(findings: list[Finding]) -> dict[str, object]:
    """Return what ``--json`` prints."""
    shown = [
        {"verdict": each.verdict.value, "topic": each.topic, "text": each.text, "remedy": each.remedy or None}
        for each in findings
    ]
    return {"schema": SCHEMA, "is_fit": not any(each.is_failure for each in findings), "findings": shown}


def _summary(findings: list[Finding]) -> str:
    counts = {verdict: sum(each.verdict is verdict for each in findings) for verdict in Verdict}
    words = [f"{count} {verdict.value}" for verdict, count in counts.items() if count]
    return f"{len(findings)} findings: {', '.join(words)}"
