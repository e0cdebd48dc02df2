"""Servers, clients and campaigns that several test files use. No test is here."""
