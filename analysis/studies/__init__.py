"""Writes the pages on claims, judged by campaigns, and on the load generator's accuracy."""
