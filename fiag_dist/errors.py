"""What can go wrong through no bug of ours. Each message says what happened, the value, the rule and the fix, in one line."""


class FiagError(Exception):
    """Base of every error that a user can cause and mend; the command line prints its text and exits with 2."""


class ConfigError(FiagError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FiagError):
    """A clip, a shard, a manifest or an audio file can't be used."""


class CheckpointError(FiagError):
    """A checkpoint is incomplete, damaged or does not fit the model."""


class DistributedError(FiagError):
    """The ranks cannot work together as asked: too few identities, unequal settings, a lost peer."""


class WeightsError(FiagError):
    """A pretrained extractor's file is missing, or its SHA-256 is not the pinned one."""
