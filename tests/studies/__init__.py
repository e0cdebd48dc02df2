"""Programs that measure rather than test, and write into `results/`; their own logic is tested
here.
"""
