"""`make docs`: draws the figures, takes in what eval/ measured, and builds the site; any warning ends it.

    python docs/build.py                       the site, in site/
    python docs/build.py --pages_only          figures and measured pages alone, for `zensical serve -f zensical.toml`
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import figures

HERE = Path(__file__).parent
EVAL = HERE.parent / "eval"
MEASURED = HERE / "pages" / "measured"


def take_measured(source: Path = EVAL, target: Path = MEASURED) -> None:
    """A page for each Markdown file under eval/, with the pictures beside it, and one that lists them."""
    shutil.rmtree(target, ignore_errors=True)
    for picture in source.rglob("*.svg"):
        copy = target / picture.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, copy)
    rows = []
    for file in sorted(source.rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        page = target / file.relative_to(source)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(without_outside_links(text, file, source), encoding="utf-8")
        title = text.partition("\n")[0].lstrip("# ")
        name = file.relative_to(source).as_posix()
        rows.append(f"| [{title}]({name}) | `eval/{name}` |")
    listed = "\n".join(rows)
    (target / "index.md").write_text(
        "# What was measured\n\nEach page is a file of the repository's `eval/`, as the script beside it wrote it; a "
        "page says which command made it, and on what.\n\n| page | file |\n|---|---|\n" + listed + "\n",
        encoding="utf-8",
    )


def without_outside_links(text: str, file: Path, source: Path) -> str:
    """Links that leave eval/'s pages become code: a site has no scripts and recipes to go to."""

    def checked(match: re.Match[str]) -> str:
        words, link = match.groups()
        if link.startswith(("http:", "https:", "#")):
            return match[0]
        to = (file.parent / link.partition("#")[0]).resolve()
        return match[0] if to.suffix == ".md" and to.is_relative_to(source.resolve()) and to.exists() else f"`{words}`"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", checked, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages_only", action="store_true")
    asked = parser.parse_args()
    figures.write()
    take_measured()
    if asked.pages_only:
        return
    config = HERE.parent / "zensical.toml"
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)]
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))  # where markup.py is
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode)


if __name__ == "__main__":
    main()
