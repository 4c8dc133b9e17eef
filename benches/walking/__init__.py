"""What ``walks.py`` counts: the imports of a checkout, and the calls of a run between its files."""
