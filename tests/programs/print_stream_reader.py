"""Prints what reads responses here: c or python."""

from loadtests.client.reader import socket_reader

if __name__ == "__main__":
    print(socket_reader().kind)
