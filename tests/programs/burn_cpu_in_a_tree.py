"""Burns 1 s of CPU in a tree of four processes: 0.3 s in a child of a child, 0.3 s in that child,
which lives on until its input is closed, 0.2 s in another child, which ends soon (too soon to be
sampled, perhaps), and 0.2 s itself. The argument is the process's role in the tree.
"""

import subprocess
import sys
import time

TICK_S = 0.02  # the kernel cuts user and system time down to whole ticks of 10 ms


def burn(cpu_s: float) -> None:
    end_s = time.process_time() + cpu_s
    while time.process_time() < end_s:
        pass


def burn_whole_process(cpu_s: float) -> None:
    """Until this process, its start included, has used `cpu_s`."""
    burn(cpu_s + TICK_S - time.process_time())


def command_of(role: str) -> list[str]:
    return [sys.executable, __file__, role]


def run_root() -> None:
    short = subprocess.Popen(command_of("short"))
    child = subprocess.Popen(command_of("child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    short.wait()
    burn(0.2)
    child.stdout.readline()
    print("burnt", flush=True)
    sys.stdin.read()
    child.stdin.close()
    child.wait()
    print("alone", flush=True)
    time.sleep(600)


def run_child() -> None:
    subprocess.run(command_of("grandchild"))
    burn_whole_process(0.3)
    print("burnt", flush=True)
    sys.stdin.read()


ROLES = {
    "root": run_root,
    "child": run_child,
    "grandchild": lambda: burn_whole_process(0.3),
    "short": lambda: burn_whole_process(0.2),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]]()
