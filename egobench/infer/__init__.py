"""A model that answers: exported, run in a runtime of choice, and measured in a fresh process."""
