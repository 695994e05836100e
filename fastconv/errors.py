"""The exceptions fastconv raises beyond ValueError and TypeError."""


class AlgorithmError(ValueError):
    """A named algorithm can't serve the problem; the message says why."""


class WorkspaceError(ValueError):
    """A named algorithm can't keep the workspace limit; the message gives both sizes."""
