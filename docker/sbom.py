"""What an image consists of, as CycloneDX 1.5 JSON (https://cyclonedx.org/docs/1.5/json/).

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


def python_packages(distributions: Iterable[metadata.Distribution]) -> Iterator[dict[str, Any]]:
    """One component a distribution, with its licence as its author gives it."""
    for one in distributions:
        about = one.metadata
        name = about["Name"].lower().replace("_", "-").replace(".", "-")
        yield _component(name, one.version, f"pkg:pypi/{name}@{quote(one.version)}", _license(about))


def debian_packages(status: str) -> Iterator[dict[str, Any]]:
    """One component an installed package of dpkg's status file."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") == "install ok installed":
            name, version, kind = fields["Package"], fields["Version"], fields["Architecture"]
            yield _component(name, version, f"pkg:deb/debian/{name}@{quote(version)}?arch={kind}", "")


def document(target: str, components: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The whole bill; the same components always give the same bytes."""
    unique = {component["purl"]: component for component in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"imagemill-{target}", "bom-ref": target}},
        "components": [unique[purl] for purl in sorted(unique)],
    }


def _component(name: str, version: str, purl: str, license: str) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return component | ({"licenses": [{"license": {"name": license}}]} if license else {})


def _license(about: Message) -> str:
    """One line: the SPDX expression where there is one, else the classifiers, else the first line of the field."""
    classifiers = [text.split(" :: ")[-1] for text in about.get_all("Classifier", []) if text.startswith("License")]
    whole = str(about.get("License", "")).strip()
    return str(about.get("License-Expression", "")) or ", ".join(classifiers) or whole.split("\n")[0][:100]


def main(target: str) -> None:
    components = [
        _component("python", platform.python_version(), f"pkg:generic/python@{platform.python_version()}", "PSF-2.0"),
        *python_packages(metadata.distributions()),
        *(debian_packages(DPKG.read_text()) if DPKG.exists() else []),
    ]
    SBOM.parent.mkdir(parents=True, exist_ok=True)
    SBOM.write_text(json.dumps(document(target, components), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
