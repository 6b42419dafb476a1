"""Makes build/bundle.pack from generated assets and checks that everything comes out again."""

import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from assetpack import pack, unpack  # noqa: E402

WORDS = "align border button colour drawer footer grid header image label margin panel".split()
SIZE = 110_000
"""Bytes of each asset."""


def asset(seed: int) -> bytes:
    """Something between a style sheet and noise."""
    draw = random.Random(seed)
    lines = []
    size = 0
    while size < SIZE:
        line = f".{draw.choice(WORDS)}-{draw.randrange(40)} {{ {draw.choice(WORDS)}: {draw.randrange(99)}px }}\n"
        lines.append(line)
        size += len(line)
    return "".join(lines).encode()


def main() -> None:
    files = {f"style{index}.css": asset(index) for index in range(8)}
    bundle = pack(files, effort=300)
    assert unpack(bundle) == files, "what comes out is not what went in"
    target = ROOT / "build"
    target.mkdir(exist_ok=True)
    (target / "bundle.pack").write_bytes(bundle)
    before = sum(map(len, files.values()))
    print(f"{len(files)} files, {before} -> {len(bundle)} bytes ({len(bundle) / before:.0%})")


if __name__ == "__main__":
    main()
