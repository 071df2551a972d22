"""``ingress doctor``: what it finds in surroundings that are fit, and in those that are not."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ingress.cli import _doctor, _doctor_machine, main
from ingress.cli._doctor_discovery import check_directory
from ingress.cli._doctor_machine import check_clock, check_descriptors, check_libraries, check_python, satisfies
from ingress.cli._doctor_network import check_request_address, check_status_port
from ingress.cli._doctor_variables import ELSEWHERE, check_variables, names_we_read
from ingress.cli._findings import Finding, Verdict
from ingress.wire.records import EndpointId, InstanceRecord

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes as POSIX has them")


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("DYN_", "INGRESS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("ingress").level
    yield
    root.handlers[:], level, ours = before
    root.setLevel(level)
    logging.getLogger("ingress").setLevel(ours)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict is not Verdict.OK]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """``v1/instances`` of a record directory as a worker makes it."""
    path = tmp_path / "kv" / "v1" / "instances"
    path.mkdir(parents=True, mode=0o700)
    for each in (path, *path.parents[:2]):
        each.chmod(0o700)
    return path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on loopback that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# -- the verb ---------------------------------------------------------------------------------------------------------


def test_fit_surroundings_have_a_line_for_everything_and_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    topics = [line.split()[1] for line in captured.out.splitlines()]
    expected = "python libraries variables clock descriptors discovery address status plug-ins"
    assert list(dict.fromkeys(topics)) == expected.split()
    assert {line.split()[0] for line in captured.out.splitlines()} <= {"ok", "warn"}
    assert " findings: " in captured.err


def test_what_fails_says_what_to_do_and_exits_with_1(capsys: pytest.CaptureFixture[str], taken: int) -> None:
    assert main(["doctor", "--status-port", str(taken), "-q"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert f"cannot listen on 127.0.0.1:{taken}: Address already in use → another --status-port" in line


def test_json_has_a_schema_and_every_finding(capsys: pytest.CaptureFixture[str], taken: int) -> None:
    assert main(["doctor", "--json", "--port", str(taken)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["is_fit"]) == ("ingress.doctor/1", False)
    (failed,) = [finding for finding in document["findings"] if finding["verdict"] == "fail"]
    assert failed["topic"] == "address"
    assert "--port" in failed["remedy"]
    assert {finding["remedy"] for finding in document["findings"] if finding["verdict"] == "ok"} == {None}


def test_what_is_not_used_is_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--discovery", "mem", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [each["text"] for each in findings if each["topic"] == "discovery"] == ["mem: no directory to look at"]


async def test_a_check_that_breaks_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks() -> list[Finding]:
        return [Finding(Verdict.OK, "", str(1 / 0))]

    async def hangs() -> list[Finding]:
        await trio.Event().wait()
        return []

    monkeypatch.setattr(_doctor, "CHECK_TIMEOUT", 0.1)
    told: list[Finding] = []
    await _doctor._run_checks([("one", breaks), ("two", hangs)], told.append)
    assert [(finding.topic, finding.verdict) for finding in told] == [("one", Verdict.FAIL), ("two", Verdict.FAIL)]
    assert "ZeroDivisionError: division by zero" in told[0].text
    assert "no answer within 0.1 s" in told[1].text


# -- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "needed", "holds"),
    [
        ("0.18.0", ">=0.18,<0.19", True),
        ("0.19", "<0.19,>=0.18", False),
        ("0.17.9", ">=0.18", False),
        ("24.2", ">=24.2", True),
        ("24.2.0", ">=24.2", True),
        ("25.1.0rc1", ">=24.2", True),
        ("3.10.4", ">=3.11", False),
        ("2.0", "!=2.0", False),
        ("1.4.7", "~=1.4.2", True),
        ("1.5", "~=1.4.2", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(found: str, needed: str, holds: bool) -> None:
    assert satisfies(found, needed) is holds


def test_this_python_and_these_libraries_fit() -> None:
    assert bad(check_python()) == []
    assert "trio" in only(check_libraries()).text


def test_an_old_python_and_old_or_absent_libraries_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.2")
    assert only(check_python()).is_failure
    declared = ["trio>=999", "no-such-library>=1", 'pytest>=999; extra == "dev"']
    monkeypatch.setattr(_doctor_machine, "requires", lambda name: declared)
    findings = check_libraries()
    assert [finding.verdict for finding in findings] == [Verdict.FAIL, Verdict.FAIL]
    assert "needs >=999" in findings[0].text
    assert findings[1].remedy == "pip install 'no-such-library>=1'"


def test_a_clock_that_was_never_set_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bad(check_clock()) == []

    class Dead(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Dead:
            return cls(1970, 1, 1, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Dead)
    assert only(check_clock()).is_failure


@posix
def test_the_limit_of_open_files_is_held_against_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for limits, requests, verdict, remedy in (
        ((20_000, 20_000), 2048, Verdict.OK, ""),
        ((4300, 4300), 2048, Verdict.WARN, "LimitNOFILE=11136 in its unit, or --engine-request-limit 722"),
        ((11_136, 11_136), 2048, Verdict.OK, ""),
        ((4300, 4300), 722, Verdict.OK, ""),
        ((4300, 4300), 723, Verdict.WARN, "LimitNOFILE=4352 in its unit, or --engine-request-limit 722"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 2048, Verdict.OK, ""),
        ((1024, 1 << 20), 2048, Verdict.OK, ""),  # a worker raises it
        ((1024, 1024), 2048, Verdict.WARN, "LimitNOFILE=11136 in its unit, or --engine-request-limit 163"),
        ((64, 64), 2048, Verdict.FAIL, "LimitNOFILE=11136 in its unit"),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=limits: limits)
        finding = only(check_descriptors(requests))
        assert (finding.verdict, finding.remedy) == (verdict, remedy)


@posix
def test_l04_the_limit_of_open_files_is_held_against_the_line_and_the_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (4300, 4300))
    finding = only(check_descriptors(100, 600, 2000))
    assert finding.verdict is Verdict.OK
    assert finding.text == (
        "a limit of 4300: up to 2000 connections, and 2108 for answers, of which 700 requests at once need up to 1400, "
        "beside those that linger"
    )
    assert only(check_descriptors(100, 900)).remedy == "LimitNOFILE=5888 in its unit"  # the line alone is too long
    assert only(check_descriptors(100, 0, 8192)).remedy == "LimitNOFILE=11136 in its unit"


# -- discovery --------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_there_yet_is_fine_where_it_can_be_made(tmp_path: Path) -> None:
    assert "the first worker makes it" in only(check_directory(tmp_path / "a" / "b")).text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert only(check_directory(tmp_path / "file")).is_failure
    assert only(check_directory(tmp_path / "file" / "below")).is_failure


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_fails(directory: Path) -> None:
    directory.chmod(0o500)
    findings = bad(check_directory(directory.parents[1]))
    assert any(finding.is_failure and "cannot be written: Permission denied" in finding.text for finding in findings)


def test_a_fit_directory_is_left_as_it_was(directory: Path) -> None:
    record = InstanceRecord(EndpointId.parse("demo.backend.generate"), 7, {"tcp": "127.0.0.1:1/7/x"}, "json")
    (directory / record.file_name).write_bytes(record.encode())
    findings = check_directory(directory.parents[1])
    assert bad(findings) == []
    assert findings[-1].text == "1 fresh, none stale"
    assert [path.name for path in directory.iterdir()] == [record.file_name]


@posix
@pytest.mark.parametrize(("mode", "verdict"), [(0o777, Verdict.FAIL), (0o770, Verdict.WARN)])
def test_a_directory_that_others_may_write_is_no_good(directory: Path, mode: int, verdict: Verdict) -> None:
    directory.chmod(mode)
    finding = only(bad(check_directory(directory.parents[1])))
    assert (finding.verdict, finding.remedy.split()[0]) == (verdict, "chmod")


@posix
def test_a_directory_of_another_user_fails(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    # Files that are made now still belong to us: what is compared is who we say that we are.
    for path in (directory, *directory.parents[:2]):
        if me == 0:
            os.chown(path, 12345, -1)
    if me != 0:
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    findings = bad(check_directory(directory.parents[1]))
    assert any(finding.is_failure and "belongs to user" in finding.text for finding in findings)


def test_stale_and_odd_records_are_listed_but_not_all_of_them(directory: Path) -> None:
    long_ago = time.time() - 3600
    for number in range(5):
        path = directory / f"demo%2Fa%2Fb%2F{number}"
        path.write_text("{}")
        os.utime(path, (long_ago, long_ago - number))
    (directory / "a-directory").mkdir()
    stale, odd = bad(check_directory(directory.parents[1]))
    assert "5 stale" in stale.text and "and 2 more" in stale.text and "the oldest for 36" in stale.text
    assert "demo%2Fa%2Fb%2F4" in stale.text
    assert "1 that nobody reads: a-directory: not a regular file" in odd.text


@pytest.mark.parametrize(("ahead", "verdict"), [(0, Verdict.OK), (-3, Verdict.WARN), (60, Verdict.FAIL)])
def test_a_file_servers_clock_that_differs_is_noticed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, verdict: Verdict
) -> None:
    """Released callers hold a record's file time against their own clock."""
    real = time.time
    monkeypatch.setattr("ingress.cli._doctor_discovery.time.time", lambda: real() + ahead)
    findings = [finding for finding in check_directory(directory.parents[1]) if finding.topic == "discovery"]
    assert [finding.verdict for finding in findings] == [verdict]


# -- the network ------------------------------------------------------------------------------------------------------


async def test_the_advertised_address_is_dialled() -> None:
    finding = only(await check_request_address("127.0.0.1", 0, None))
    assert finding.verdict is Verdict.OK
    assert "leads here (callers of this host only)" in finding.text


async def test_an_address_where_nobody_answers_fails(taken: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        finding = only(await check_request_address("127.0.0.1", 0, f"127.0.0.1:{port}"))
    assert finding.is_failure
    assert f"callers are told 127.0.0.1:{port}, where nobody answers: Connection refused" in finding.text
    assert "--advertise" in finding.remedy


async def test_an_address_where_somebody_else_answers_fails(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.cli._doctor_network.DIAL_TIMEOUT", 0.2)
    finding = only(await check_request_address("127.0.0.1", 0, f"127.0.0.1:{taken}"))
    assert finding.is_failure
    assert "nothing of ours answered within 0.2 s" in finding.text


async def test_a_port_that_is_taken_and_an_address_that_is_not_ours_fail(taken: int) -> None:
    for host, port in (("127.0.0.1", taken), ("192.0.2.77", 0)):
        finding = only(await check_request_address(host, port, None))
        assert finding.is_failure
        assert f"cannot listen on {host}:{port}" in finding.text


async def test_the_status_port_is_tried(taken: int) -> None:
    assert only(await check_status_port("127.0.0.1", taken)).is_failure
    assert [only(await check_status_port("127.0.0.1", port)).verdict for port in (-1, 0)] == [Verdict.OK, Verdict.OK]


# -- variables --------------------------------------------------------------------------------------------------------


def test_variables_are_sorted_into_ours_others_and_misspelt() -> None:
    environ = {
        "DYN_SYSTEM_PORT": "1",
        "DYN_SYSTEM_PROT": "secret-value",
        "DYN_TCP_POOL_SIZE": "5",
        "DYN_SOMETHING_OF_A_ROUTER": "x",
        "DYN_SYSTEM_ENABLED": "true",
        "INGRESS_NOTHING": "1",
        "PATH": "/bin",
    }
    *warnings, summary = check_variables(environ, names_we_read())
    assert [finding.verdict for finding in warnings] == [Verdict.WARN] * 3
    deprecated, misspelt, unknown = warnings
    assert deprecated.text.startswith("DYN_SYSTEM_ENABLED is deprecated")
    assert (misspelt.text, misspelt.remedy) == (
        "DYN_SYSTEM_PROT is no variable of ours",
        "DYN_SYSTEM_PORT is; was it meant?",
    )
    assert unknown.text.startswith("INGRESS_NOTHING")
    assert summary.text == "read: DYN_SYSTEM_PORT; not for us: DYN_SOMETHING_OF_A_ROUTER, DYN_TCP_POOL_SIZE"
    assert "secret-value" not in str(warnings)


def test_every_variable_behind_an_option_is_known_and_none_is_also_somebody_elses() -> None:
    known = names_we_read()
    assert {"DYN_LOG", "DYN_SYSTEM_PORT", "DYN_FILE_KV", "DYN_NAMESPACE", "DYN_ENGINE_REQUEST_LIMIT"} <= known
    assert known.isdisjoint(ELSEWHERE)
    assert bad(check_variables(dict.fromkeys([*known, *ELSEWHERE], "1"), known)) == []
