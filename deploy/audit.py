"""Looks the images' locked dependencies up among known vulnerabilities: `make check`, `make audit`.

Uses pip-audit and the advisories of the package index. Where these can't be reached nothing is
audited; that is said, and is an error only with `--required`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCKS = sorted(Path(__file__).parent.glob("*/requirements.*.txt"))


def main() -> int:
    """Exit code: 0 clean, or not audited; 1 vulnerable, or not audited with --required."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--required", action="store_true", help="fail where nothing can be audited")
    required = parser.parse_args().required
    found = [package for lock in LOCKS for package in audit(lock)]
    vulnerable = {
        f"{package['name']} {package['version']}: {fault['id']}"
        + (f", mended in {', '.join(fault['fix_versions'])}" if fault["fix_versions"] else "")
        for package in found
        for fault in package.get("vulns", ())
    }
    audited = {package["name"] for package in found if "vulns" in package}
    left_out = {package["name"] for package in found} - audited
    for line in sorted(vulnerable):
        print(f"audit: {line}")
    print(f"audit: {len(audited)} packages were audited, {len(left_out)} could not be")
    return 1 if vulnerable or (required and not audited) else 0


def audit(lock: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each package of a file; nothing where it can't be asked."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "--format=json",
        "--timeout=10",
        "--progress-spinner=off",
        "--requirement",
        str(lock),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)  # noqa: S603
    except subprocess.TimeoutExpired:
        print(f"audit: {lock} was not audited: no answer within three minutes")
        return []
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"audit: {lock} was not audited: {reason}")
        return []
    return packages


if __name__ == "__main__":
    raise SystemExit(main())
