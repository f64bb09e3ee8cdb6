"""What can go wrong in what both sides share."""


class StorageUnavailable(Exception):
    """Redis or the object store does not answer. Nobody's fault: try again."""
