"""Write what a worker is installed with as CycloneDX 1.6: ``python .ci/sbom.py LOCK… > FILE``.

Made from lock files alone: names, versions, and the hashes of every file that may be installed. Which package needs
which is not in them and therefore not told. The time is SOURCE_DATE_EPOCH's; the same locks give the same bytes.
Needs nothing but Python, so that nothing else runs where a release is made.
"""

import json
import os
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(
    r"(?P<name>\S+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)


def entries_of(lock: Path) -> Iterator[re.Match[str]]:
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        match = ENTRY.fullmatch(" ".join(line.split()))
        if match is None:
            raise SystemExit(f"{lock}: no release with its hashes: {line[:80]}")
        yield match


def component_of(entry: re.Match[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{entry['name']}@{entry['version']}"
    hashes = [{"alg": "SHA-256", "content": text} for text in re.findall("[0-9a-f]{64}", entry["hashes"])]
    # One for each file of the release, and not all of one: hence they stand beside the place to get them.
    distribution = {"type": "distribution", "url": f"https://pypi.org/simple/{entry['name']}/", "hashes": hashes}
    component = {
        "type": "library",
        "bom-ref": purl,
        "name": entry["name"],
        "version": entry["version"],
        "purl": purl,
        "externalReferences": [distribution],
    }
    if entry["marker"]:
        component["properties"] = [{"name": "ingress-dispatch:marker", "value": entry["marker"]}]
    return component


def own_component() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version_file = (ROOT / "ingress" / "_version.py").read_text(encoding="utf-8")
    version = re.findall(r'"(.+)"', version_file)[0]
    purl = f"pkg:pypi/{project['name']}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": project["name"],
        "version": version,
        "description": project["description"],
        "licenses": [{"license": {"id": project["license"]}}],
        "purl": purl,
    }


def bill_of(locks: list[Path]) -> dict[str, Any]:
    found = {each["purl"]: each for lock in locks for each in map(component_of, entries_of(lock))}
    components = [found[purl] for purl in sorted(found)]
    root = own_component()
    content = json.dumps([root, components], sort_keys=True)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, content).urn,
        "version": 1,
        "metadata": {"timestamp": datetime.fromtimestamp(seconds, UTC).isoformat(), "component": root},
        "components": components,
        "compositions": [{"aggregate": "unknown", "dependencies": [root["bom-ref"], *sorted(found)]}],
    }


if __name__ == "__main__":
    json.dump(bill_of([Path(name) for name in sys.argv[1:]]), sys.stdout, indent=2, ensure_ascii=False)
    print()
