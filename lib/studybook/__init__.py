"""Instruments for the study book: data, networks, metrics, intervals, claims and sweeps.

Import the module you need (`from studybook import metrics`); nothing is imported from here.
"""

__version__ = "0.1.0"
