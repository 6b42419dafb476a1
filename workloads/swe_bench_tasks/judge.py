"""The command that decides whether an instance is solved: its hidden tests, run in its container.

The dataset's test patch is applied over what the agent left, the tests of its files are run, and each
test that the dataset names must have passed. Output is read as pytest (-rA), Django's runner and SymPy's
print it; what comes from elsewhere in a dataset must name a command of that kind.
"""

from __future__ import annotations

import base64
import re
import shlex
import zlib
from collections.abc import Sequence

RUNNERS = {
    "django/django": "./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1",
    "sympy/sympy": "PYTHONWARNINGS=ignore bin/test -C --verbose",
}
"""Repositories that have a runner of their own; all others have pytest."""
PYTEST = "python -m pytest -rA -p no:cacheprovider --tb=no"

READER = r"""
import re, sys
names = set(open(sys.argv[1]).read().split("\n")) - {""}
passed, failed = set(), set()
for line in open(sys.argv[2], errors="replace"):
    line = line.rstrip()
    found = re.match(r"(PASSED|XFAIL) (\S.*)", line)                       # pytest
    if found:
        passed.add(found.group(2).split(" - ")[0])
        continue
    found = re.match(r"(FAILED|ERROR) (\S.*)", line)
    if found:
        failed.add(found.group(2).split(" - ")[0])
        continue
    found = re.match(r"(.+?) \.\.\. (ok|OK|skipped .*|expected failure)$", line)  # Django
    if found:
        passed.add(found.group(1))
        continue
    found = re.match(r"(test_\w+)\s+(ok|s|X)\b", line)                     # SymPy
    if found:
        passed.add(found.group(1))
missing = sorted(names - (passed - failed))
for name in missing[:20]:
    print("not passed: " + name)
print("%d of %d tests passed" % (len(names) - len(missing), len(names)))
sys.exit(1 if missing else 0)
"""


def test_files(patch: str) -> list[str]:
    """Files that a patch adds or changes, in order."""
    found = re.findall(r"^\+\+\+ b/(.+)$", patch, re.MULTILINE)
    return [path for path in dict.fromkeys(found) if path.endswith(".py")]


def judge_command(
    repo: str, patch: str, names: Sequence[str], files: Sequence[str], *, command: str = ""
) -> list[str]:
    """Argv for the container's bash; it ends with 0 if all tests of ``names`` passed.

    ``command``: the tests' own command, to which nothing is added if it is given.
    """
    if not command:
        command = f"{RUNNERS.get(repo, PYTEST)} {shlex.join(_targets(repo, files))}"
    script = f"""
source /opt/miniconda3/bin/activate testbed 2>/dev/null || true
kept=$(mktemp -d) || exit 3
{_unpacked("patch", patch)}
{_unpacked("names", chr(10).join(names))}
{_unpacked("read.py", READER)}
for file in {shlex.join(files)}; do git checkout -q HEAD -- "$file" 2>/dev/null; done
git apply -v "$kept/patch" || {{ echo "the test patch does not apply"; exit 3; }}
{command} > "$kept/log" 2>&1
python3 "$kept/read.py" "$kept/names" "$kept/log"
"""
    return ["bash", "-c", script]


def _targets(repo: str, files: Sequence[str]) -> list[str]:
    """Files as the repository's runner wants them."""
    if repo != "django/django":
        return list(files)
    return [path.removeprefix("tests/").removesuffix(".py").replace("/", ".") for path in files]


def _unpacked(name: str, text: str) -> str:
    """Shell that writes a file, whatever is in it."""
    packed = base64.b64encode(zlib.compress(text.encode())).decode()
    code = "import base64,sys,zlib;sys.stdout.buffer.write(zlib.decompress(base64.b64decode(sys.stdin.read())))"
    return f"python3 -c {shlex.quote(code)} > \"$kept/{name}\" <<'PACKED'\n{packed}\nPACKED"
