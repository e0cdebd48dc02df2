"""The facts of the generated pages, a module for each page. May import servers, loadtests and
analysis; nothing imports it but docs/generate.py.
"""
