"""Tests of servers/conversion/."""
