"""A hash of a generator's source: what other code draws is other data, under the same arguments."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType


def generator_sha256(folder: Path, *others: ModuleType) -> str:
    """SHA-256 over the names and bytes of all Python files below a folder, and of modules elsewhere."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    files |= {module.__name__: Path(str(module.__file__)) for module in others}
    code = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()
