"""Programs to run and to read: ``python -m fastconv.examples.mnist``, ``.step_time`` and ``.inference``."""
