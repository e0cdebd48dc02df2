"""`python -m loadtests.telemetry`: see `loadtests/telemetry/processes.py`."""

from loadtests.telemetry.processes import main

if __name__ == "__main__":
    main()
