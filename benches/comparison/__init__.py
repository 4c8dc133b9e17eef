"""The parts of ``benches/compare.py``: cases, engines that take turns, the files that they read."""
