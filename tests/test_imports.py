"""Imports go one way, and `import mixcontrast` needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mixcontrast

ROOT = Path(mixcontrast.__file__).parent
LOW = {"records", "similarity", "checks", "cells", "plans"}  # what a table is made of
CORE = LOW | {"pairs", "mixing", "queue", "losses", "mixers", "tiling", "caching", "distributed", "adapters", "kernels"}
APPLICATION = {
    "cli", "commands", "data", "environment", "explanation", "files", "judge", "models", "report", "study", "training",
    "wording",
}  # fmt: skip
MAY_IMPORT = {
    "records": set(),
    "similarity": set(),
    "checks": {"similarity"},
    "cells": {"checks"},
    "plans": {"records", "similarity", "checks", "cells"},
    "pairs": LOW,
    "mixing": LOW | {"pairs"},
    "queue": LOW | {"pairs"},
    "kernels": LOW,
    "losses": LOW | {"pairs", "queue", "kernels"},
    "mixers": LOW | {"pairs", "queue", "kernels", "mixing", "losses"},
    "tiling": LOW | {"pairs", "queue", "mixing", "losses", "mixers"},
    "caching": set(),
    "distributed": LOW | {"pairs", "queue", "mixing", "losses", "mixers", "tiling"},
    "adapters": CORE | {"retrieval"},
    "retrieval": set(),
    "analysis": LOW | {"pairs"},
    "__init__": CORE,
}
for _part in APPLICATION:  # on top of all, among themselves free
    MAY_IMPORT[_part] = CORE | APPLICATION | {"retrieval", "analysis"}
MODULES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of what a module imports, at its top or inside its functions; of relative imports too."""
    names = set()
    package = ("mixcontrast", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*base, node.module) if node.module else base)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names if base == "mixcontrast"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} has no place in the order of imports; give it one in MAY_IMPORT"
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("mixcontrast.")}
    wrong = {name for name in ours - MAY_IMPORT[part] - {part} if not name.startswith("__")}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which {part} may not"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_torch_alone(path):
    if part_of(path) not in CORE - {"adapters"} | {"__init__", "analysis"}:
        pytest.skip("a part with extras")
    allowed = set(sys.stdlib_module_names) | {"torch", "mixcontrast", "__future__"}
    allowed |= {"triton"} if part_of(path) == "kernels" and path.name != "__init__.py" else set()  # loaded when used
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_faiss_is_imported_by_retrieval_alone():
    for path in MODULES:
        if part_of(path) != "retrieval":
            assert "faiss" not in {name.split(".")[0] for name in imported(path)}, path.name


@pytest.mark.parametrize("path", sorted((ROOT / "adapters").glob("*.py")), ids=lambda path: path.stem)
def test_an_adapter_imports_its_own_library_alone(path):
    """`mixcontrast.adapters.lightly` needs lightly, and nothing of the other adapters."""
    libraries = {"pytorch_metric_learning", "sentence_transformers", "lightly", "sklearn"}
    names = imported(path)
    assert {name.split(".")[0] for name in names} & libraries <= {path.stem}
    assert not {name for name in names if name.startswith("mixcontrast.adapters")}
    if path.stem != "sentence_transformers":  # whose evaluator judges retrieval
        assert not {name for name in names if name.startswith("mixcontrast.retrieval")}


def test_import_mixcontrast_loads_no_extras():
    heavy = "faiss lightning pytorch_lightning open_clip timm torchvision scipy pandas matplotlib PIL sklearn".split()
    heavy += "triton jsonargparse rich lightly pytorch_metric_learning sentence_transformers".split()
    code = (
        "import torch, sys; before = set(sys.modules); import mixcontrast, mixcontrast.data; "
        f"print(sorted(set({heavy}) & (set(sys.modules) - before)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


def test_every_public_name_exists_once():
    assert len(set(mixcontrast.__all__)) == len(mixcontrast.__all__)
    assert all(hasattr(mixcontrast, name) for name in mixcontrast.__all__)
