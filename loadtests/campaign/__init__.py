"""Campaigns: plan the cases, run them one after the other, and keep their results in a folder.

Imports every other folder of `loadtests` except `claims`. Starts `analysis` as a process and never
imports it.
"""
