"""The load generator's own errors on this machine: calibration.json, measured once per campaign."""

from collections.abc import Sequence
from pathlib import Path

from loadtests import schema
from loadtests.accuracy import calibration
from loadtests.campaign.case_run import CampaignContext
from loadtests.errors import UsageError
from loadtests.generator import locust_process
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case

FILE = "calibration.json"
ABOUT_S = 30.0


def is_known(folder: Path) -> bool:
    return (folder / FILE).exists()


def calibrate(context: CampaignContext, cases: Sequence[Case], watch: ProgressWatch) -> None:
    """Calibrates at the largest number of users and the highest rate of these cases, unless the
    campaign has a calibration. Raises UsageError.
    """
    if is_known(context.folder):
        return
    try:
        with watch.waiting("calibrating the load generator", ABOUT_S):
            errors = calibration.calibrate(
                context.folder,
                max((case.users for case in cases if case.users), default=None),
                max((case.rate for case in cases if case.rate), default=None),
                calibration.Placement(context.workers, context.share.cores, context.load_cores),
            )
    except locust_process.LoadFailed as error:
        raise UsageError(
            f"the load generator could not be calibrated (--no-calibration skips this): {error}"
        ) from None
    schema.write_json(context.folder / FILE, errors)
    watch.say(calibration.describe_errors(errors))
