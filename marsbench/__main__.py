"""``python -m marsbench`` is ``marsbench``."""

from marsbench.cli import main

main()
