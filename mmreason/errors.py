"""The errors that mmreason raises on purpose.

One base class, `MMReasonError`, so that the command line can print a message instead of a traceback. Every
subclass also inherits the built-in type it stands for, so that ordinary `except ValueError` keeps working.
A message says what is wrong, where, and what to do next. All classes are picklable (a single message argument).
"""

from __future__ import annotations


class MMReasonError(Exception):
    """Base of every error whose message is meant for the user rather than for a developer."""

    #: Process exit code when the error reaches the command line.
    exit_code = 1


class ConfigError(MMReasonError, ValueError):
    """The configuration is refused: unknown key, value out of range, options that contradict each other."""

    exit_code = 2


class DataError(MMReasonError, ValueError):
    """A data file or one of its rows cannot be used; the message names the file and the line."""


class ImageError(MMReasonError, ValueError):
    """An image is refused or unreadable; the message names the file and the limit it broke."""


class BoxError(MMReasonError, ValueError):
    """A box is not a box: wrong length, non-finite numbers, unknown frame."""


class ModelError(MMReasonError, RuntimeError):
    """A model, processor or checkpoint cannot be loaded or does not fit what is asked of it."""


class PluginError(MMReasonError, ValueError):
    """A plug-in is unknown, registered twice, or declares something impossible."""


class RewardFailure(MMReasonError, RuntimeError):
    """Too large a share of reward calls failed; the run stops rather than train on noise."""


class ResumeError(MMReasonError, RuntimeError):
    """A run cannot be continued exactly: damaged checkpoint, other configuration, other weights."""
