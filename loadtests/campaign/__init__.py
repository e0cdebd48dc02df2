"""Which cases are measured, in which order, one after the other, and where they are kept.

Imports everything below it in `loadtests`. It starts `analysis` as a process and never imports it.
"""
