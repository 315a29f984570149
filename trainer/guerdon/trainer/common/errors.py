"""What can go wrong in training, each said in one plain sentence."""

from __future__ import annotations

from guerdon.settings import SettingsError as SettingsError


class TrainingError(Exception):
    """Training can't start or can't go on. The text is for the person at the terminal."""


class DataError(TrainingError):
    """The preference data is missing, malformed, or empty after what was left out."""


class OutputError(TrainingError):
    """The output folder can't be used as asked."""


class ServiceGone(TrainingError):
    """A service stayed away for longer than the run's patience."""


class DivergedError(TrainingError):
    """The loss or a score is not a finite number; nothing servable was saved."""


class ProcessGone(TrainingError):
    """Another process of the run has ended without a word."""


class SaidElsewhere(TrainingError):
    """Another process of the run has said what is wrong: this one ends without a word."""
