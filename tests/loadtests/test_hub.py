"""Under gevent, in a process of its own: importing gevent's hub must not change the sockets of the other tests."""

import subprocess
import sys

ALARM = """
import time, gevent
from loadtests.hub import Alarm

alarm, woken = Alarm(), []

def sleeper(own, at):
    own.sleep_until(at)
    woken.append((at, time.perf_counter()))

start = time.perf_counter()
gevent.joinall([gevent.spawn(sleeper, Alarm(), start + s) for s in (0.05, 0.01, 0.03, -1.0, 0.0301)])
assert [at for at, _ in woken] == sorted(at for at, _ in woken), woken
assert all(now >= at for at, now in woken), "too early"
for n in range(50):  # the same alarm again and again
    sleeper(alarm, time.perf_counter() + 0.001)
alarm.close()

killed = gevent.spawn(sleeper, Alarm(), time.perf_counter() + 60)
gevent.sleep(0.01)
killed.kill()
print("fine", len(woken))
"""


def test_an_alarm_wakes_in_order_never_early_and_can_be_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ALARM], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine 55\n", done.stderr
