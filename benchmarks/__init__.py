"""The library's speed and memory against what one would use instead: `python -m benchmarks --help`."""
