"""What the user sees while a campaign runs: a view on a terminal, one line a case elsewhere. It
knows cases and the status of a load, and nothing of how they are run.
"""
