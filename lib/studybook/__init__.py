"""Instruments for the study book: data, networks, metrics, intervals, claims and sweeps.

Import the module you need (`from studybook import metrics`); nothing is imported from here.
"""

import sys

__version__ = "0.1.0"

sys.modules.setdefault("rfc3987_syntax", None)  # compiles for seconds grammars of which nothing here has a use
