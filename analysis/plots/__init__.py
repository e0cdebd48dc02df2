"""Matplotlib figures of what `summary` holds. Imports no report and computes no metric."""
