#!/usr/bin/env python3
"""What is installed, as a bill of materials in CycloneDX 1.6 JSON on standard output.

    .venv/bin/python deploy/sbom.py >sbom.json

In: the metadata of the packages that this Python finds. Out: a component for each, with version, package URL, licence
as the package tells it and what it depends on here. The same environment gives the same bytes: no time, and a serial
number that follows from the contents. It does not look into wheels that bring C libraries, and asks no index.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from typing import Any
from urllib.parse import quote

from packaging.requirements import InvalidRequirement, Requirement

OURS = "thinkdiff"


def normal(name: str) -> str:
    """A package name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(found: Iterable[Distribution]) -> dict[str, Distribution]:
    """Distributions by name; of one that is found twice the first, which is the one that is imported."""
    by_name: dict[str, Distribution] = {}
    for one in found:
        if one.metadata["Name"]:
            by_name.setdefault(normal(one.metadata["Name"]), one)
    return dict(sorted(by_name.items()))


def reference(name: str, one: Distribution) -> str:
    """The package URL, by which components are told apart."""
    return f"pkg:pypi/{name}@{quote(one.version)}"


def licences(one: Distribution) -> list[dict[str, Any]]:
    """What a package says of its licence: an SPDX expression, else the names in its classifiers or its own words."""
    if expression := one.metadata["License-Expression"]:
        return [{"expression": expression}]
    classified = [line for line in one.metadata.get_all("Classifier") or [] if line.startswith("License :: ")]
    names = [line.rsplit(" :: ", 1)[1] for line in classified if line.count(" :: ") > 1]
    said = (one.metadata["License"] or "").strip().split("\n")[0][:100]
    return [{"license": {"name": name}} for name in sorted(set(names)) or [said] if name]


def component(name: str, one: Distribution) -> dict[str, Any]:
    """A package as a component."""
    about: dict[str, Any] = {
        "type": "application" if name == OURS else "library", "bom-ref": reference(name, one), "name": name,
        "version": one.version, "purl": reference(name, one),
    }  # fmt: skip
    if told := licences(one):
        about["licenses"] = told
    return about


def needed(one: Distribution, known: dict[str, Distribution]) -> list[str]:
    """References of the installed packages that one requires in this environment, without extras."""
    found = set[str]()
    for line in one.requires or []:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:  # of an old package; it says nothing that can be followed
            continue
        name = normal(wanted.name)
        if name in known and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found.add(reference(name, known[name]))
    return sorted(found)


def bill(found: Iterable[Distribution]) -> dict[str, Any]:
    """The whole document."""
    known = installed(found)
    components = {name: component(name, one) for name, one in known.items()}
    metadata = {"component": components.pop(OURS)} if OURS in components else {}
    about: dict[str, Any] = {
        "metadata": metadata,
        "components": list(components.values()),
        "dependencies": [{"ref": reference(name, one), "dependsOn": needed(one, known)} for name, one in known.items()],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(about))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1} | about


if __name__ == "__main__":
    json.dump(bill(distributions()), sys.stdout, indent=1)
    print()
