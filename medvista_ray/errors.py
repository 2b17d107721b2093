"""The flat exception vocabulary. Every exception takes one message string, so that it survives a process border.

User errors (`ConfigError` and its kind) end a command with one line and exit code 2; the others are faults of a run.
"""


class MedVistaError(Exception):
    """Any error that this package raises on purpose."""


# --- user errors: found at load, before any process is started
class ConfigError(MedVistaError):
    """A value that the user gave is wrong: says which key, which value, which bound, and the remedy."""


class MissingPackageError(ConfigError):
    """An optional package is not installed: says which extra brings it."""


class DataError(ConfigError):
    """A data set, a manifest or an image file is not what it should be."""


# --- images and blobs
class ImageError(MedVistaError):
    """Bytes are not an image that may be decoded: wrong format, too many pixels, damaged."""


class BlobMissingError(MedVistaError):
    """A digest has no bytes in the blob store."""


# --- bytes from a network or a file
class WireError(MedVistaError):
    """Bytes are no record or frame of ours: unknown version, wrong kind, damaged (with the offset)."""


# --- tools
class ToolError(MedVistaError):
    """A tool could not do what it was asked; the text becomes an observation."""


class ToolArgumentError(ToolError):
    """Arguments fit the schema and still make no sense (an empty box, an image that is not there)."""


# --- rendering
class RenderError(MedVistaError):
    """Messages cannot be turned into token ids, or a token stream breaks a rule of the record."""


# --- the delivery protocol
class FenceError(MedVistaError):
    """A call carries an old fence or incarnation, or breaks the order of the protocol."""


class LeaseExpiredError(MedVistaError):
    """A lease has gone back: its groups are ready again, what was computed from them is dropped."""


# --- engines and weights
class EngineDiedError(MedVistaError):
    """An inference engine is gone; the turn may be issued elsewhere."""


class EngineClosedError(MedVistaError):
    """An engine has not loaded verified weights yet."""


class WeightsRefusedError(MedVistaError):
    """Staged weights do not fit the model: names the tensor, or the digest that differs."""


# --- processes and runs
class ShardDiedError(MedVistaError):
    """An environment shard is gone; its groups are issued again."""


class LearnerDiedError(MedVistaError):
    """A learner rank is gone; the run goes on from its newest checkpoint."""


class ParityError(MedVistaError):
    """Engine and learner disagree on log-probabilities by more than the bound."""


class NoProgressError(MedVistaError):
    """The watchdog saw no progress: the text lists every loop with its wait reason."""


class PlacementError(MedVistaError):
    """The cluster cannot place the plan: says which resource is missing."""


class RunFailedError(MedVistaError):
    """A run cannot go on: says why and what to do."""


class StoppedError(MedVistaError):
    """Somebody asked a run to stop; what was done is kept, and the text says how to go on (exit code 130)."""
