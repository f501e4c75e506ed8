"""The command line ``edgead``: one module for each group of verbs, all of them cheap to import."""

from edgead.cli import training as training  # isort: skip - the order of import is the order in the help
from edgead.cli import auditing as auditing  # isort: skip
from edgead.cli import recommending as recommending  # isort: skip
from edgead.cli import evaluating as evaluating  # isort: skip
from edgead.cli import synthesis as synthesis  # isort: skip
from edgead.cli import exporting as exporting  # isort: skip
from edgead.cli import importing as importing  # isort: skip
from edgead.cli import comparing as comparing  # isort: skip
from edgead.cli import building as building  # isort: skip
from edgead.cli import device as device  # isort: skip
from edgead.cli.line import signoff as signoff  # isort: skip
from edgead.cli import tuning as tuning  # isort: skip
from edgead.cli.line import camera as camera  # isort: skip
from edgead.cli.line import serving as serving  # isort: skip
from edgead.cli.line import recording as recording  # isort: skip
from edgead.cli.line import replaying as replaying  # isort: skip
from edgead.cli.line import reviewing as reviewing  # isort: skip
from edgead.cli.line import teaching as teaching  # isort: skip
from edgead.cli.release import signing as signing  # isort: skip
from edgead.cli.release import publishing as publishing  # isort: skip
from edgead.cli._app import app, main, run

__all__ = ["app", "main", "run"]
