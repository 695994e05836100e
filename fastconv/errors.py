"""The exceptions fastconv raises beyond ValueError and TypeError."""


class AlgorithmError(ValueError):
    """A named algorithm can't serve the problem; the message says why."""


class WorkspaceError(ValueError):
    """A named algorithm can't keep the workspace limit; the message gives both sizes."""


class DeviceError(RuntimeError):
    """An array on a GPU can't be computed with; the message says what is missing."""
