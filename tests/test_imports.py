"""Who may import whom: design rules read from the source with `ast`."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cli", "data", "eval", "kernels", "train", "vlm")
FORBIDDEN = {
    "kernels": {
        "gnomon.data",
        "gnomon.eval",
        "gnomon.train",
        "gnomon.vlm",
        "gnomon.cli",
        "transformers",
        "lightning",
        "timm",
    },
    "vlm": {"gnomon.data", "gnomon.train", "gnomon.eval", "gnomon.cli", "lightning", "deepspeed"},
    "data": {"gnomon.vlm", "gnomon.kernels", "gnomon.train", "gnomon.eval", "gnomon.cli", "transformers", "deepspeed"},
    "train": {"gnomon.eval", "gnomon.cli"},
    "eval": {"gnomon.train", "gnomon.cli", "lightning", "deepspeed"},
    "cli": set(),
}
ALLOWED = {  # exceptions: folder of the importing file -> module -> files that may
    # encoders of views are encoders too: one of them is made of HF's depth estimators
    "vlm": {
        "transformers": {
            "vlm/hf.py",
            "vlm/attention.py",
            "vlm/export/",
            "vlm/importing/",
            "vlm/encoders/",
            "vlm/geometry/depth_only.py",
        },
    },
    "data": {"gnomon.vlm.layout": {"data/"}, "lightning": {"data/module.py"}},
    "train": {"deepspeed": {"train/strategies.py"}},
    "eval": {"lightning": {"eval/callback.py"}},
}
RESTRICTED = {"vlm": {"transformers"}, "data": {"lightning"}, "train": {"deepspeed"}}
FAMILIES = (
    "kernels/softmax", "kernels/linear", "kernels/sparse", "vlm/encoders", "vlm/connectors", "vlm/geometry",
    "vlm/crossview", "vlm/fusion", "vlm/auxiliary", "vlm/position", "vlm/reduction", "vlm/compute", "vlm/mitigation",
    "vlm/mixers", "vlm/heads", "train/recipes", "eval/benchmarks", "eval/probes",
)  # fmt: skip


def sources():
    return sorted(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from gnomon.vlm import layout` names a module as much as `from gnomon.vlm.layout import x` does
            names.add(node.module)
            if node.module.count(".") < 2 and node.module.startswith("gnomon"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("file", sources(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_import_table(file):
    path = file.relative_to(ROOT).as_posix()
    folder = path.split("/")[0]
    exceptions = ALLOWED.get(folder, {})
    for name in imported(file):
        granted = {m for m, files in exceptions.items() if within(name, m) and any(path.startswith(f) for f in files)}
        if granted:
            continue
        for module in FORBIDDEN[folder] | RESTRICTED.get(folder, set()):
            assert not within(name, module), f"{path} imports {name}"
        if within(name, "triton"):
            assert path.startswith("kernels/triton_ops/"), f"{path} imports triton outside triton_ops"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sibling_imports(family):
    package = "gnomon." + family.replace("/", ".")
    for file in sorted((ROOT / family).glob("*.py")):
        for name in imported(file):
            if within(name, package):
                assert within(name, f"{package}.base"), f"{file.name} imports its neighbour {name}"


def test_no_init_files():
    found = [f.relative_to(ROOT).as_posix() for folder in FOLDERS for f in (ROOT / folder).rglob("__init__.py")]
    assert not found, f"namespace packages have no __init__.py: {found}"


def test_names_do_not_shadow_the_standard_library():
    taken = {folder for folder in FOLDERS if folder in sys.stdlib_module_names}
    assert not taken
