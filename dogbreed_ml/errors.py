"""The exception tree.

Every error that a user can cause or must act on is one of these; its message is rule, value, way out.

    DogbreedError
    ├── ConfigError        a bad value, flag, key or file of the config (exit status 2)
    ├── DataError          a data set that cannot be used: missing, empty, too many bad images
    │   └── ImageError     one image that cannot be read
    ├── ModelError         weights or a network that do not fit the config
    │   └── CheckpointError  a checkpoint that cannot be read
    ├── BackendError       a back end that is absent here or disagrees with torch fp32
    ├── TrainingError      a training that left no model worth keeping
    ├── FeaturesError      features that do not fit or cannot be kept
    ├── ProfileError       profiler files that are absent or damaged
    ├── TrackingError      the tracking server or store refused, or stayed away
    ├── SearchError        a search that cannot go on
    ├── ServingError       a server that does not start, or does not answer as it should
    ├── CloudError         AWS refused, stayed away, or a job there failed
    └── GateError          a change of champion that the gate does not allow (exit status 3)
"""


class DogbreedError(Exception):
    """The root: the command line prints it as one line and exits with 1."""


class ConfigError(DogbreedError, ValueError):
    """A value that breaks its rule; the command line exits with 2."""


class DataError(DogbreedError):
    """A data set that cannot be used as it is."""


class ImageError(DataError):
    """An image that cannot be read; the message is the reason alone, ready for quarantine.csv."""


class ModelError(DogbreedError):
    """Weights or a network that do not fit what the config asks for."""


class CheckpointError(ModelError):
    """A checkpoint that is damaged, or of a format this version does not know."""


class BackendError(DogbreedError):
    """A back end that is absent on this machine, or whose features disagree with torch fp32."""


class TrainingError(DogbreedError):
    """A training whose weights are not numbers any more."""


class FeaturesError(DogbreedError):
    """Features that would not fit, or that cannot be kept."""


class ProfileError(DogbreedError):
    """Profiler files that are absent or damaged."""


class TrackingError(DogbreedError):
    """The tracking store refused a write or stayed away longer than the deadline."""


class SearchError(DogbreedError):
    """A search that cannot go on."""


class ServingError(DogbreedError):
    """A server that does not start, or does not answer as it should."""


class CloudError(DogbreedError):
    """AWS refused a call or stayed away, or a job there failed."""


class GateError(DogbreedError):
    """A change of champion that the gate does not allow; the command line exits with 3."""
