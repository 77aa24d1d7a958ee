"""The exceptions of thinkdiff. Every message is one sentence: what was found, what was expected, why, what to do.

ThinkDiffError                  anything a user can act on; the command line exits with code 2
├── SpecError (ValueError)      an unknown recipe, stage or key, a value out of range
├── PlanError (RuntimeError)    things that a run needs are missing, told before any work
├── RootError (OSError)         a root that cannot be read or written
├── InputError (ValueError)     a collection file that is missing, empty or of another format
├── ModelError (OSError)        a model folder or hub model that is not whole
├── EngineError (RuntimeError)  an engine or decoding process died, or its version is not supported
├── TrainingError (RuntimeError) a training that diverged, was stopped or lost its process
├── StoreError (OSError)        an artifact's bytes are missing, truncated or altered
└── LockedError (RuntimeError)  another run holds the lease of the same artifact
"""

from __future__ import annotations


class ThinkDiffError(Exception):
    """Base of all errors that a user can act on."""


class SpecError(ThinkDiffError, ValueError):
    """An unknown recipe, stage or key, or a value that the spec refuses."""


class PlanError(ThinkDiffError, RuntimeError):
    """Things that a run needs are missing."""


class RootError(ThinkDiffError, OSError):
    """A root that cannot be read or written."""


class InputError(ThinkDiffError, ValueError):
    """An input collection that is missing, empty or of another format than declared."""


class ModelError(ThinkDiffError, OSError):
    """A model that is missing or lacks a file."""


class EngineError(ThinkDiffError, RuntimeError):
    """The inference engine died or is of an unsupported version."""


class TrainingError(ThinkDiffError, RuntimeError):
    """A training that diverged, was stopped, or whose process died."""


class StoreError(ThinkDiffError, OSError):
    """Stored bytes that are missing, truncated or not those that were recorded."""


class LockedError(ThinkDiffError, RuntimeError):
    """Another live run holds the lease of this artifact."""
