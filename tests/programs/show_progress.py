"""Shows the progress of a case of 1.2 s as a campaign shows it."""

import time

from loadtests.campaign.progress import ProgressWatch
from loadtests.generator.messages import Window
from loadtests.schema import Case
from tests.helpers.load_status import running_status

CASE = Case(2, "two", "simulated", "chat", 1, None, 2.5, 10.0)


def main() -> None:
    with ProgressWatch({"chat": 2.0}) as watch:
        watch.plan([CASE] * 3, done=0)
        watch.start(CASE)
        watch.stage("launch")
        time.sleep(0.6)
        watch.stage("load")
        for second, tokens in ((1, 100), (2, 1334), (3, 2568)):
            watch.load(running_status(second, 77, tokens, 1.234, Window(0.5, 9)))
        time.sleep(0.6)
        watch.end("ok")


if __name__ == "__main__":
    main()
