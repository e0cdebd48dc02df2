"""Sleeps by alarms, which never wake early and can be set again, and kills a sleeper."""

import time

import gevent

from loadtests.generator.pacer import PreciseTimer


def main() -> None:
    woken: list[tuple[float, float]] = []  # (when it was to wake, when it did)

    def sleep(alarm: PreciseTimer, until_s: float) -> None:
        alarm.sleep_until(until_s)
        woken.append((until_s, time.perf_counter()))

    start_s = time.perf_counter()
    delays_s = (0.05, 0.01, 0.03, -1.0, 0.0301)
    gevent.joinall([gevent.spawn(sleep, PreciseTimer(), start_s + delay_s) for delay_s in delays_s])
    # in any order: where the loop comes late, several have passed, and epoll lists them as it likes
    assert len(woken) == len(delays_s), woken

    alarm = PreciseTimer()
    for _ in range(50):  # the same alarm again and again
        sleep(alarm, time.perf_counter() + 0.001)
    alarm.close()
    assert all(now_s >= until_s for until_s, now_s in woken), "too early"

    killed = gevent.spawn(sleep, PreciseTimer(), time.perf_counter() + 60)
    gevent.sleep(0.01)
    killed.kill()
    print("woken", len(woken))


if __name__ == "__main__":
    main()
