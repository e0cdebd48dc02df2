"""Prints what reads responses here: c or python."""

from loadtests.client.reader import streams

if __name__ == "__main__":
    print(streams().reader)
