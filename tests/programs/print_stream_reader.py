"""Prints what reads responses here: c or python."""

from loadtests.client.native import socket_reader

if __name__ == "__main__":
    print(socket_reader().reader)
