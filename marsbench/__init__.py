"""marsbench: how much does the scheduler matter for coding agents?"""
