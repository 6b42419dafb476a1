"""marsbench: how much does the scheduler matter for coding agents?"""

from marsbench.compiled import install

install()
