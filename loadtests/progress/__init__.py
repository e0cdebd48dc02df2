"""The display while a campaign runs: a live view on a terminal, one line per case elsewhere. It
knows cases and the status of a load, but not how they are run.
"""
