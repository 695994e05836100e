"""``python -m fastconv bench SUITE``: real layers, checked and timed beside other libraries in one run."""
