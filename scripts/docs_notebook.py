#!/usr/bin/env python3
"""Execute docs/howto/notebook.md: its Python blocks in order, each block's output into the text block behind it.

python scripts/docs_notebook.py          # writes outputs and the picture
python scripts/docs_notebook.py --check  # fails if they are not what the code gives now
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/howto/notebook.md"
PICTURE = "kv.png"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)


def executed(text: str, folder: Path) -> str:
    """The page with the outputs that its code gives now; files go into ``folder``.

    Paths in the code are those of the repository.
    """
    names: dict[str, object] = {}

    def run(match: re.Match[str]) -> str:
        said = io.StringIO()
        code = match["code"].replace('"results/', f'"{ROOT}/results/')
        with contextlib.redirect_stdout(said):
            exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102 - the page is ours
        output = said.getvalue().replace(f"{ROOT}/", "").rstrip("\n")
        if not output:
            return match[0]
        return f"```python\n{match['code']}```\n\n```text\n{output}\n```"

    before = Path.cwd()
    os.chdir(folder)
    try:
        return BLOCK.sub(run, text)
    finally:
        os.chdir(before)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        now = executed(text, Path(folder))
        if check and now != text:
            sys.exit(
                f"{PAGE.relative_to(ROOT)} is not what its code gives: run {Path(__file__).name}"
            )
        if not check:
            PAGE.write_text(now, encoding="utf-8")
            shutil.copy(Path(folder) / PICTURE, PAGE.with_name(PICTURE))


if __name__ == "__main__":
    main()
