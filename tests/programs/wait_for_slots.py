"""Takes two slots by turns: nobody overtakes a greenlet that waits, not even in the moment in which
a slot becomes free.
"""

import gevent

from loadtests.generator.gevent_tools import FairSemaphore


def main() -> None:
    slots = FairSemaphore(2)
    order: list[int] = []

    def take(number: int) -> None:
        slots.acquire()
        order.append(number)

    def give_while_another_comes(number: int) -> None:
        gevent.spawn(take, number)
        slots.release()

    for number in range(4):
        gevent.spawn(take, number)
    gevent.sleep(0.01)
    assert order == [0, 1], order
    for number in range(4, 8):
        gevent.spawn(give_while_another_comes, number).join()
        gevent.sleep(0.01)
    assert order == [0, 1, 2, 3, 4, 5], order
    for _ in range(6):
        slots.release()
    gevent.sleep(0.01)
    assert order == list(range(8)), order
    assert slots.free == 4, slots.free
    print("fine")


if __name__ == "__main__":
    main()
