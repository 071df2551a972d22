"""The command line in process: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ingress import __version__
from ingress.cli import main
from ingress.cli._app import VERBS, make_app
from ingress.cli._errors import CommandError, print_error
from ingress.cli._options import DiscoveryOptions, check_endpoint, parse_pairs
from ingress.cli._payloads import json_line, print_document, read_request, text_for, text_of
from ingress.cli._serve import pair_endpoints
from ingress.cli._worker_flags import DEFAULT_WORKER, WorkerFlags
from ingress.wire.records import EndpointId, InstanceRecord

CAPTURES = Path(__file__).parent / "captures"


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("DYN_", "INGRESS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("ingress").level
    yield
    root.handlers[:], level, ours = before
    root.setLevel(level)
    logging.getLogger("ingress").setLevel(ours)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()


# -- finding one's way ------------------------------------------------------------------------------------------------


def test_without_a_verb_the_verbs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Usage: ingress {verb}" in capsys.readouterr().out


def test_an_unknown_verb_gets_the_nearest_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "srve") == (
        2,
        [
            "error: unknown verb 'srve'",
            f"  why: the verbs are {', '.join(VERBS)}",
            "  try: ingress serve",
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["serve", "echo", "--prt", "1"], "unknown option --prt", "--port"),
        (["serve", "echo", "--port"], "--port is missing its value", "ingress serve --help"),
        (["serve", "echo", "--codec", "jsn"], "--codec jsn cannot be used", "ingress serve --help"),
        (["serve", "echo", "--grace", "nan"], "--grace nan cannot be used", "ingress serve --help"),
        (["serve", "echo", "--dial-allow", "1.2.3"], "--dial-allow 1.2.3 cannot be used", "ingress serve --help"),
        (["serve", "echo", "--advertise", "h:99999"], "--advertise h:99999 cannot be used", "ingress serve --help"),
        (["serve", "echo", "--advertise", "a b"], "--advertise a b cannot be used", "ingress serve --help"),
        (["serve", "echo", "--processes", "1.5"], "--processes 1.5 cannot be used", "ingress serve --help"),
        (["settings", "--max-connections", "2.0"], "--max-connections 2.0 cannot be used", "ingress serve --help"),
        (
            ["serve", "echo", "--health-path", "/metrics"],
            "--health-path /metrics and --live-path /live cannot be used",
            "a path of its own for each, such as /health and /live",
        ),
        (
            ["serve", "echo", "--processes", "2", "--live-path", "/health"],
            "--health-path /health and --live-path /health cannot be used",
            "a path of its own for each, such as /health and /live",
        ),
        (["serve", "echo", "--endpoint", "a.b.c.d"], "'a.b.c.d' is no endpoint", "demo.backend.generate"),
        (
            ["serve", "echo", "--metrics-label", "a-b=c"],
            "--metrics-label a-b=c cannot be used",
            "--metrics-label team=search",
        ),
        (
            ["serve", "echo", "--metrics-label", "__name__=c"],
            "--metrics-label __name__=c cannot be used",
            "--metrics-label team=search",
        ),
        (
            ["serve", "echo", "--metrics-label", "le=x"],
            "--metrics-label le=x cannot be used",
            "--metrics-label my_le=…",
        ),
        (["serve", "echo", "--grace", "1e10"], "--grace 1e10 cannot be used", "ingress serve --help"),
        (["serve"], "nothing to serve", "ingress serve markov, or hello.py:generate"),
        (["call"], "ENDPOINT is missing its value", "ingress call --help"),
        (["call", "a.b.c", "d"], "d is too much", "ingress call --help"),
        (["call", "a.b.c", "-d", "hello"], "-d is not JSON", "-d '\"hello\"' for plain text"),
        (["call", "a.b.c", "-H", "x"], "-H x cannot be used", "-H team=search"),
        (["call", "a.b.c", "--direct", "zz"], "--direct zz cannot be used", "ingress ls"),
        (["bench", "a.b.c", "--rate", "1", "-c", "2"], "--rate and --concurrency exclude each other", "one of the two"),
        (
            ["bench", "a.b.c", "-n", "1", "--duration", "2"],
            "--requests and --duration exclude each other",
            "one of the two",
        ),
        (["bench", "a.b.c", "--rate", "0"], "--rate 0 cannot be used", "ingress bench --help"),
        (["bench", "a.b.c", "--rate", "nan"], "--rate nan cannot be used", "ingress bench --help"),
        (["bench", "a.b.c", "-c", "0"], "-c 0 cannot be used", "ingress bench --help"),
        (["bench", "a.b.c", "--duration", "0"], "--duration 0 cannot be used", "ingress bench --help"),
        (
            ["bench", "a.b.c", "--arrivals", "poisson"],
            "--arrivals needs --rate",
            "--rate 100 --arrivals poisson",
        ),
        (
            ["bench", "a.b.c", "--rate", "5", "--seed", "1"],
            "--seed needs --arrivals poisson",
            "--arrivals poisson --seed 1",
        ),
        (
            ["bench", "a.b.c", "-c", "1000000000"],
            "--concurrency 1000000000 cannot be had",
            "a smaller --concurrency, or a higher ulimit -n",
        ),
        (["decode", "no-such-file"], "no-such-file cannot be read", "a file, or - for standard input"),
        (
            ["ls", "--discovery", "mem"],
            "mem discovery cannot find other processes",
            "--discovery file, with the --file-kv of the worker",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_end_with_2_and_say_what_to_try(
    arguments: list[str], what: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = complaint(capsys, *arguments)
    assert code == 2
    assert lines[0] == f"error: {what}"
    assert lines[-1] == f"  try: {remedy}"
    assert len(lines) <= 3


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DYN_TCP_RPC_PORT", "abc", "expected a whole number"),
        ("DYN_ENGINE_REQUEST_LIMIT", "1.5", "expected a whole number"),
        ("DYN_HEALTH_CHECK_ENABLED", "maybe", "expected true or false"),
        ("DYN_LOGGING_JSONL", "maybe", "expected true or false"),
        ("DYN_LOG_USE_LOCAL_TZ", "2", "expected true or false"),
        ("INGRESS_ADVERTISE", "h:0", "expected HOST or HOST:PORT, the port from 1 to 65535"),
        ("DYN_TCP_RPC_PORT", "99999", "must be <= 65535"),
        ("DYN_REQUEST_PLANE_CODEC", "xml", "expected one of msgpack, json"),
        ("DYN_DISCOVERY_BACKEND", "etcd", "expected one of file, mem"),
        ("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "-1", "expected seconds, 0 or more"),
        ("DYN_TCP_WORKER_POOL_SIZE", "0", "must be >= 1"),
        ("DYN_LOG", "loud", "'loud' is no level; known: trace, debug, info, warn, warning, error, off"),
    ],
)
def test_a_bad_variable_is_a_usage_error_that_names_it(
    name: str, value: str, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    code, lines = complaint(capsys, "serve", "echo", "--host", "256.0.0.0")
    assert (code, lines[:2]) == (2, [f"error: {name}={value} cannot be used", f"  why: {reason}"])


# -- flag, variable, default ------------------------------------------------------------------------------------------


def worker_options(arguments: list[str]) -> WorkerFlags:
    """Parse a ``serve`` line, and return the options instead of serving."""
    seen: list[WorkerFlags] = []

    def serve(*targets: str, worker: WorkerFlags = DEFAULT_WORKER) -> int:
        seen.append(worker)
        return 0

    app = make_app()
    del app["serve"]
    app.command(serve)
    app(["serve", "echo", *arguments], exit_on_error=False)
    return seen[0]


def test_a_flag_beats_its_variable_and_a_variable_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_options([]).port == 0
    monkeypatch.setenv("DYN_TCP_RPC_PORT", "4000")
    assert worker_options([]).port == 4000
    assert worker_options(["--port", "5000"]).port == 5000


@pytest.mark.parametrize(
    ("flag", "older", "newer", "name"),
    [
        ("--engine-request-limit", "DYN_TCP_WORKER_POOL_SIZE", "DYN_ENGINE_REQUEST_LIMIT", "engine_request_limit"),
        ("--request-queue-limit", "DYN_TCP_WORK_QUEUE_SIZE", "DYN_DYNAMO_REQUEST_QUEUE_LIMIT", "request_queue_limit"),
    ],
)
def test_a_limit_comes_from_its_flag_then_its_newer_name_then_its_older(
    flag: str, older: str, newer: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(*arguments: str) -> int:
        return int(worker_options(list(arguments)).keywords(["a.b.c"])[name])

    assert limit() == {"engine_request_limit": 2048, "request_queue_limit": 0}[name]
    monkeypatch.setenv(older, "7")
    assert limit() == 7
    monkeypatch.setenv(newer, "9")
    assert limit() == 9
    assert limit(flag, "11") == 11


def test_the_queue_deadline_is_off_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_options([]).keywords(["a.b.c"])["queue_deadline"] is None
    monkeypatch.setenv("INGRESS_QUEUE_DEADLINE", "2.5")
    assert worker_options([]).keywords(["a.b.c"])["queue_deadline"] == 2.5
    assert worker_options(["--queue-deadline", "1"]).queue_deadline == 1


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon"])
def test_a_queue_deadline_that_cannot_be_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = complaint(capsys, "serve", "echo", "--queue-deadline", value)
    assert code == 2 and lines[0] == f"error: --queue-deadline {value} cannot be used"


def test_options_become_the_keyword_arguments_of_a_worker() -> None:
    arguments = ["--dial-policy", "cidr", "--dial-allow", "10.0.0.0/8", "--metrics-label", "team=x", "--grace", "0.5"]
    keywords = worker_options(arguments).keywords(["a.b.c"])
    assert keywords["dial_policy"].name == "cidr"
    assert [str(network) for network in keywords["dial_policy"].allow] == ["10.0.0.0/8"]
    assert keywords["metrics_labels"] == {"a.b.c": {"team": "x"}}
    assert keywords["linger"] == 0.5


def test_an_empty_variable_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", "")
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["discovery"]["backend"] == "file"


def test_the_file_store_is_named_only_where_another_terminal_must_be_told(tmp_path: Path) -> None:
    assert DiscoveryOptions().flags_to_repeat == []
    assert DiscoveryOptions(file_kv=tmp_path).flags_to_repeat == [f"--file-kv {tmp_path}"]
    assert DiscoveryOptions(discovery="acme").flags_to_repeat == ["--discovery acme"]


def test_endpoints_are_completed_by_the_namespace() -> None:
    assert check_endpoint("generate", "demo") == "demo.backend.generate"
    assert check_endpoint("dyn://a.b.c", "demo") == "a.b.c"


def test_targets_and_endpoints_pair_up() -> None:
    assert pair_endpoints(["echo"], [], "team") == ["team.backend.generate"]
    assert pair_endpoints(["echo", "markov"], ["a", "x.y.z"], "team") == ["team.backend.a", "x.y.z"]


@pytest.mark.parametrize("endpoints", [[], ["a"], ["a", "b", "c"], ["a", "a"]])
def test_targets_and_endpoints_that_do_not_pair_up_are_refused(
    endpoints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for endpoint in endpoints for word in ("--endpoint", endpoint)]
    assert complaint(capsys, "serve", "echo", "markov", *flags)[0] == 2


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert parse_pairs(["a=b=c", "d="], "-H") == {"a": "b=c", "d": ""}


# -- call: in and out -------------------------------------------------------------------------------------------------


def test_a_request_is_read_from_the_line_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"n": 3}')
    assert read_request('{"n": 3}') == read_request(f"@{tmp_path / 'request.json'}") == {"n": 3}


def test_text_is_taken_from_where_items_have_it() -> None:
    assert [text_of(item) for item in ("a", {"text": "b"}, {"data": "c"}, {"other": 1})] == [
        "a",
        "b",
        "c",
        '{"other":1}\n',
    ]


def test_an_item_is_one_line_whatever_it_holds() -> None:
    assert json_line({"text": "a\nb", 1: b"\xff"}) == b'{"text":"a\\nb","1":"/w=="}\n'


NOT_TEXT = "\x7f\x80\x9b\x9f\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069"


def test_json_shows_control_and_bidi_characters_escaped_and_means_the_same(capfdbinary: Any) -> None:
    item = {f"k{NOT_TEXT}": f"\x1b[31m{NOT_TEXT}ä\U0001f469\u200d\U0001f4bb"}
    line = json_line(item).decode()
    assert json.loads(line) == item
    assert not set(line) & set(NOT_TEXT)
    assert "\\u009b" in line
    assert "ä\U0001f469\u200d\U0001f4bb" in line
    print_document(item)
    document = capfdbinary.readouterr().out.decode()
    assert json.loads(document) == item
    assert not set(document) & set(NOT_TEXT)


def test_text_for_a_terminal_keeps_only_what_is_text() -> None:
    text = f"\x1b]0;pwn\x07\r\n\t{NOT_TEXT}ä\U0001f469\u200d\U0001f4bb\ud800"
    assert text_for(text, is_terminal=False) == text.encode(errors="replace")
    shown = text_for(text, is_terminal=True).decode()
    assert shown.startswith("\\x1b]0;pwn\\x07\\r\n\t\\x7f\\x80\\x9b")
    assert shown.endswith("\\u2069ä\U0001f469\u200d\U0001f4bb?")
    assert not set(shown) & set(NOT_TEXT)


def test_calling_nobody_says_who_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, lines = complaint(capsys, "call", "demo.backend.generate", "--file-kv", str(tmp_path / "kv"))
    assert code == 1
    assert lines[:2] == ["error: nobody serves demo.backend.generate", f"  why: file {tmp_path / 'kv'} knows no worker"]


@pytest.mark.parametrize("verb", ["call", "bench"])
def test_k02_a_record_whose_host_holds_escapes_is_passed_over_and_told_of(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "kv" / "v1" / "instances"
    store.mkdir(parents=True)
    for number, host in enumerate(("a\x1b[31mb", "\x00", "\u2028", "\x9b\u202e")):
        record = InstanceRecord(EndpointId("demo", "backend", "generate"), number, {"tcp": f"{host}:9/x"})
        (store / record.file_name).write_bytes(record.encode())
    code, lines = complaint(capsys, verb, "demo.backend.generate", "--file-kv", str(tmp_path / "kv"))
    assert code == 1
    assert sum("is skipped" in line for line in lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "error: nobody serves demo.backend.generate" in lines


def test_an_error_shows_what_others_wrote_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    error = CommandError("a\x1b[31mb", "\x9b\u202e\u200b", "two\n lines")
    print_error(error, Console(stderr=True))
    assert capsys.readouterr().err == "error: a\\x1b[31mb\n  why: \\x9b\\u202e\\u200b\n  try: two lines\n"


# -- ls, plugins, decode ----------------------------------------------------------------------------------------------


def test_ls_lists_records_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    vector = json.loads((CAPTURES / "discovery-record-1.6.1.json").read_text())
    store = tmp_path / "kv" / "v1" / "instances"
    store.mkdir(parents=True)
    (store / vector["file_name"]).write_bytes(bytes.fromhex(vector["bytes_hex"]))
    assert main(["ls", "--file-kv", str(tmp_path / "kv")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "endpoint               instance          address          codec",
        "demo.backend.generate  94350025299dac90  127.0.0.1:46109  msgpack",
    ]
    assert captured.err.startswith("1 instance of 1 endpoint")
    assert main(["ls", "generate", "--json", "--file-kv", str(tmp_path / "kv")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ingress.ls/1"
    assert [(each["endpoint"], each["instance"], each["codec"]) for each in document["instances"]] == [
        ("demo.backend.generate", "94350025299dac90", "msgpack")
    ]
    assert main(["ls", "other", "--json", "--file-kv", str(tmp_path / "kv")]) == 0
    assert json.loads(capsys.readouterr().out)["instances"] == []


def test_plugins_lists_the_built_in_ones_of_every_group_and_whether_they_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plugins", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ingress.plugins/1"
    names = {(each["group"], each["name"]) for each in document["plugins"]}
    assert names >= {
        ("ingress.shapes", "header-and-data"),
        ("ingress.shapes", "header-only"),
        ("ingress.engines", "echo"),
        ("ingress.discovery", "file"),
        ("ingress.discovery", "mem"),
        ("ingress.planes", "tcp"),
    }
    assert all(each["problem"] is None and each["loads"] is True for each in document["plugins"])
    assert main(["plugins", "--no-check"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["group", "name", "target", "distribution", "version", "loads"]
    tcp = ["planes", "tcp", "ingress.planes.tcp:TcpRequestPlane", "ingress-dispatch", __version__, "?"]
    assert tcp in lines


def test_decode_prints_offsets_names_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(CAPTURES / "response-ok-1.6.1.json")]) == 0
    shown = capsys.readouterr().out
    assert "frame 6  sentinel  34 bytes at offset 352\n" in shown
    assert "     24  7b 22 73 75 62 6a 65 …   header         call-home handshake (75 bytes)\n" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("beginning", ['{"a":', '{"bytes_hex":['])
def test_decode_takes_what_nests_too_deeply_for_what_it_is(
    beginning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").write_text(beginning + "[" * 100_000)
    assert main(["decode", str(tmp_path / "deep")]) == 1
    assert f"{100_000 + len(beginning)} bytes" in capsys.readouterr().out


def test_decode_colours_when_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--color=always", "decode", str(CAPTURES / "ack-ok-1.6.1.json")]) == 0
    assert "\x1b[" in capsys.readouterr().out


def test_decode_has_a_versioned_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--json", str(CAPTURES / "response-types-1.6.1.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ingress.decode/1"
    assert document["captures"][0]["form"] == "two-part"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["top", "--once", "..:90"], "..:90: no host has such a name"),
        (["call", "--call-home", "..", "demo.backend.generate"], "error: cannot take answers on .."),
        (["serve", "echo", "--host", ".."], "error: cannot listen on .."),
        (["serve", "echo", "--status-port", "0", "--status-host", "a..b"], "error: status server"),
        (["serve", "echo", "--canary", "@/dev/zero"], "/dev/zero cannot be read\n  why: larger than 1 MiB"),
        (
            ["serve", "echo", "--canary", "backend.generate=@/dev/zero"],
            "/dev/zero cannot be read\n  why: larger than 1 MiB",
        ),
        (["call", "x.y.z", "-d", "@/dev/zero"], "/dev/zero cannot be read\n  why: larger than 128 MiB"),
        (["decode", "/dev/zero"], "error: /dev/zero cannot be read"),
        (["ls", "--env-file", "/dev/zero"], "error: --env-file /dev/zero cannot be read"),
    ],
)
def test_what_is_no_host_or_has_no_end_is_told(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    if any("/dev/zero" in each for each in arguments) and not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero")
    assert main(arguments) != 0
    assert what in capsys.readouterr().err


def test_decode_ends_with_1_where_bytes_are_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cut").write_text("00 26 39 34")
    assert main(["decode", str(tmp_path / "cut")]) == 1
    assert "path at offset 2 needs 38 bytes, 2 of them here: 36 are missing" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ingress {__version__}\n"


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--context-length", "5"), 2, "a model needs a name"),
        (("--model", "a", "--model", "b"), 2, "1 targets and 2 models do not pair up"),
        (("--model", "m", "--tokenizer", "x"), 2, "--tokenizer needs --model-path"),
        (("--model", "m", "--model-path", "nowhere"), 3, "no config.json in nowhere"),
        (("--model", "m", "--model-type", "chat"), 3, "model type chat is unknown to the frontend"),
        (("--model", "m", "--model-type", "Realtime"), 3, "Realtime needs a bidirectional engine"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(
    arguments: tuple[str, ...], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    actual, lines = complaint(capsys, "serve", "echo", *arguments)
    assert actual == code
    assert expected in " ".join(lines)
