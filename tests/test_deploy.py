"""The deploy files under docs/examples/deploy: what they say is what the code does, and what they start works."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from ingress._drain import DEFAULT_DRAIN_BUDGET, DEFAULT_LINGER
from ingress._handler import GOODBYE_TIMEOUT
from ingress._last_resort import EXIT_CANCELLED_BY_DRAIN, FORCED_EXIT_TIME
from ingress._worker import CLOSING_TIME
from ingress.cli._errors import EXIT_USAGE
from ingress.status import StatusOptions

from .serve_options import known_variables

DEPLOY = Path(__file__).resolve().parent.parent / "docs" / "examples" / "deploy"
PATIENCE = 30.0

# What a worker needs after linger and budget, at the very most: tell and cancel, close, and leave what is stuck.
END = GOODBYE_TIMEOUT + CLOSING_TIME + FORCED_EXIT_TIME
MARGIN = 2.0

Manifest = dict[str, Any]


def manifests() -> dict[str, Manifest]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def pod() -> Manifest:
    return manifests()["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]  # YAML is YAML


def container() -> Manifest:
    (only,) = pod()["containers"]
    return only  # type: ignore[no-any-return]  # YAML is YAML


def container_variables() -> dict[str, str]:
    """The container's environment, as it is where the pod's address is 127.0.0.1."""
    assert container()["env"][0]["valueFrom"]["fieldRef"] == {"fieldPath": "status.podIP"}
    values = {each["name"]: each.get("value", "127.0.0.1") for each in container()["env"]}
    return {name: value.replace("$(POD_IP)", values["POD_IP"]) for name, value in values.items()}


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / "ingress-worker@.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def unit_variables() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "ingress-worker.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in their order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def instruction(name: str) -> str:
    """The last instruction of this name, which is the one that counts."""
    return [rest for each, rest in instructions() if each == name][-1]


def image_variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(instruction("ENV")))


def drain_time(variables: Mapping[str, str]) -> float:
    return float(variables["DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"]) + float(
        variables["DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"]
    )


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_the_pods_grace_period_lets_a_drain_come_to_its_end() -> None:
    spec = pod()
    assert drain_time(container_variables()) == DEFAULT_LINGER + DEFAULT_DRAIN_BUDGET
    assert spec["terminationGracePeriodSeconds"] >= DEFAULT_LINGER + DEFAULT_DRAIN_BUDGET + END + MARGIN
    assert "lifecycle" not in container(), "a preStop hook would only eat into the grace period"


def test_probes_ask_the_pages_that_there_are() -> None:
    spec, options = container(), StatusOptions()
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    variables = container_variables()
    assert ports["status"] == int(variables["DYN_SYSTEM_PORT"])
    assert ports["request"] == int(variables["DYN_TCP_RPC_PORT"])
    asked = {name: spec[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": options.health_path, "port": "status"},
        "readiness": {"path": options.health_path, "port": "status"},
        "liveness": {"path": options.live_path, "port": "status"},
    }
    # A loop that an engine blocks for a while is late, and not dead.
    liveness = spec["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
    annotations = manifests()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == variables["DYN_SYSTEM_PORT"]


def test_the_pod_runs_as_nobody_and_writes_where_it_must_only() -> None:
    spec, only = pod(), container()
    security = spec["securityContext"] | only["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == int(instruction("USER").partition(":")[0]) > 0
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert {"requests", "limits"} <= only["resources"].keys()
    mounts = {mount["name"]: mount["mountPath"] for mount in only["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert Path(mounts["discovery"]) in Path(container_variables()["DYN_FILE_KV"]).parents
    assert mounts["tmp"] == "/tmp"
    (claim,) = [volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if volume["name"] != "tmp"]
    assert claim == manifests()["PersistentVolumeClaim"]["metadata"]["name"]


def test_every_object_selects_the_pods_that_there_are() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"] for port in container()["ports"]}
    assert {port["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]} == ports


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_the_units_stop_timeout_lets_a_drain_come_to_its_end() -> None:
    settings = unit()
    assert settings["Type"] == ["exec"]
    assert settings["KillSignal"] == ["SIGTERM"]
    assert drain_time(unit_variables()) == DEFAULT_LINGER + DEFAULT_DRAIN_BUDGET
    assert int(settings["TimeoutStopSec"][0]) >= DEFAULT_LINGER + DEFAULT_DRAIN_BUDGET + END + MARGIN
    assert settings["SuccessExitStatus"] == [str(EXIT_CANCELLED_BY_DRAIN)]
    assert settings["RestartPreventExitStatus"] == [str(EXIT_USAGE)]


def test_the_units_records_lie_in_a_directory_that_it_may_write() -> None:
    settings = unit()
    assert unit_variables()["DYN_FILE_KV"] == f"/run/{settings['RuntimeDirectory'][0]}/kv"
    assert settings["WorkingDirectory"] == [f"/var/lib/{settings['StateDirectory'][0]}"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("verb", [("verify",), ("security", "--offline=true", "--threshold=20")], ids=lambda v: v[0])
def test_systemd_finds_no_fault_with_the_unit(verb: Sequence[str], tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "ingress-worker@.service").read_text(encoding="utf-8")
    # It wants to see the command, which is not installed there.
    command = Path(sys.executable).with_name("ingress")
    assert "ExecStart=/opt/ingress/bin/ingress serve" in text
    copy = tmp_path / "ingress-worker@.service"
    copy.write_text(text.replace("/opt/ingress/bin/ingress", str(command)), encoding="utf-8")
    found = subprocess.run(["systemd-analyze", *verb, str(copy)], capture_output=True, text=True, timeout=PATIENCE)
    if verb[0] == "security" and "unrecognized option" in found.stderr:
        pytest.skip("this systemd-analyze cannot look at a unit that is not loaded")
    assert found.returncode == 0, found.stdout + found.stderr
    assert verb[0] == "security" or found.stderr == ""


# -- Docker ------------------------------------------------------------------------------------------------------------


def test_the_image_has_a_slim_second_stage_that_runs_as_nobody() -> None:
    names = [name for name, _ in instructions()]
    bases = [rest for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2
    assert bases[0] == f"{bases[1]} AS build", "a virtual environment works where its Python is the same"
    assert re.fullmatch(r"python:3\.\d+-slim", bases[1])
    after = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    assert not [rest for name, rest in after if "pip" in rest or "apt" in rest], "tools stay in the first stage"
    assert [rest for name, rest in after if name == "COPY"] == ["--from=build /opt/ingress /opt/ingress"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instruction("USER"))
    assert instruction("STOPSIGNAL") == "SIGTERM"
    # As a list, so that the worker and not a shell is process 1 and gets the signal.
    assert json.loads(instruction("ENTRYPOINT")) == ["ingress", "serve"]
    assert json.loads(instruction("CMD"))
    assert image_variables()["DYN_SYSTEM_PORT"] == instruction("EXPOSE")


def test_what_the_image_is_built_from_exists_and_passes_the_ignore_file() -> None:
    root = DEPLOY.parents[2]
    wanted = {
        name
        for kind, rest in instructions()
        if kind == "COPY" and not rest.startswith("--")
        for name in rest.split()[:-1]
    }
    assert all((root / name).exists() for name in wanted)
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("!") for line in allowed if line.startswith("!")} == wanted


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    found = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=PATIENCE)
    assert found.returncode == 0, found.stdout


# -- what they start ---------------------------------------------------------------------------------------------------

STARTED: Mapping[str, Callable[[], tuple[list[str], dict[str, str]]]] = {
    "kubernetes": lambda: (list(container()["args"]), container_variables()),
    "systemd": lambda: (shlex.split(unit_variables()["TARGETS"]), unit_variables()),
    "docker": lambda: (json.loads(instruction("CMD")), image_variables()),
}


@pytest.mark.parametrize("name", STARTED)
def test_every_variable_is_one_that_the_command_reads(name: str) -> None:
    _, variables = STARTED[name]()
    assert {each for each in variables if each.startswith(("DYN_", "INGRESS_"))} <= known_variables()


@contextmanager
def started(name: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The worker that a file starts, but on free ports of loopback and in a directory of the test's; and its pages."""
    arguments, variables = STARTED[name]()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DYN_", "INGRESS_"))}
    here = {
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RPC_PORT": "0",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
        "DYN_FILE_KV": str(directory / "kv"),
        "PATH": inherited.get("PATH", os.defpath),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ingress", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=inherited | variables | here,
    )
    try:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(json.loads(line)["message"])
            if seen[-1].startswith("serving "):
                break
        (url,) = re.findall(r"status on (http://127\.0\.0\.1:\d+)", "\n".join(seen))
        yield process, url
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", STARTED)
def test_what_the_file_starts_passes_its_probes_and_drains_when_told_to(name: str, tmp_path: Path) -> None:
    with started(name, tmp_path) as (process, url):
        for probe in ("startup", "readiness", "liveness"):
            assert httpx2.get(url + container()[f"{probe}Probe"]["httpGet"]["path"]).status_code == 200
        assert "dynamo_component_uptime_seconds" in httpx2.get(f"{url}/metrics").text
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(pod()["terminationGracePeriodSeconds"]) == 0
        assert time.monotonic() - before < math.ceil(DEFAULT_LINGER + END), "nothing ran, so nothing was waited for"


def test_the_images_health_check_tells_a_live_worker_from_none(tmp_path: Path) -> None:
    check = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert check[0] == "python"

    def code(port: str) -> int:
        command = [sys.executable, *check[1:]]
        return subprocess.run(command, env={"DYN_SYSTEM_PORT": port}, timeout=PATIENCE, capture_output=True).returncode

    with started("docker", tmp_path) as (_, url):
        port = url.rpartition(":")[2]
        assert code(port) == 0
    assert code(port) == 1
