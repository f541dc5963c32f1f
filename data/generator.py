"""A hash of a generator's source: what other code draws is other data, under the same arguments."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def generator_sha256(folder: Path) -> str:
    """SHA-256 over the names and bytes of all Python files below a folder."""
    code = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.py"))
    }
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()
