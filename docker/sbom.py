"""Write an image's bill of materials as CycloneDX 1.5 JSON (https://cyclonedx.org/docs/1.5/json/).

Run as the last step of an image's build, by the image's own Python and with the standard library only:
`python3 sbom.py cpu` writes /usr/share/imagemill/sbom.json, with every Python distribution and Debian package found
in the image, Python itself among them.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

SBOM = Path("/usr/share/imagemill/sbom.json")
DPKG = Path("/var/lib/dpkg/status")


def list_python_packages(distributions: Iterable[metadata.Distribution]) -> Iterator[dict[str, Any]]:
    """Yield a component for each distribution, with the license that its metadata names."""
    for distribution in distributions:
        name = distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        version = distribution.version
        purl = f"pkg:pypi/{name}@{quote(version)}"
        yield _make_component(name, version, purl, _read_license(distribution.metadata))


def list_debian_packages(status: str) -> Iterator[dict[str, Any]]:
    """Yield a component for each installed package of dpkg's status file."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") == "install ok installed":
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}"
            yield _make_component(name, version, purl, "")


def make_document(target: str, components: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the bill of materials, sorted, so that equal components give equal bytes."""
    unique = {component["purl"]: component for component in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"imagemill-{target}", "bom-ref": target}},
        "components": [unique[purl] for purl in sorted(unique)],
    }


def _make_component(name: str, version: str, purl: str, license: str) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return component | ({"licenses": [{"license": {"name": license}}]} if license else {})


def _read_license(fields: Message) -> str:
    """Return the license on one line: the SPDX expression, else the classifiers, else the first line of `License`."""
    classifiers = [text.split(" :: ")[-1] for text in fields.get_all("Classifier", []) if text.startswith("License")]
    text = str(fields.get("License", "")).strip()
    return str(fields.get("License-Expression", "")) or ", ".join(classifiers) or text.split("\n")[0][:100]


def main(target: str) -> None:
    version = platform.python_version()
    components = [
        _make_component("python", version, f"pkg:generic/python@{version}", "PSF-2.0"),
        *list_python_packages(metadata.distributions()),
        *(list_debian_packages(DPKG.read_text()) if DPKG.exists() else []),
    ]
    SBOM.parent.mkdir(parents=True, exist_ok=True)
    SBOM.write_text(json.dumps(make_document(target, components), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
