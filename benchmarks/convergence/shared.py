"""What the study takes from the other benchmarks, whose folder is not on the path of its scripts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import RESULTS, machine, report, table, time_cases

__all__ = ["RESULTS", "machine", "report", "table", "time_cases"]
