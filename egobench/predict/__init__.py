"""What a trial needs, from shapes alone: pure functions that load no torch, so that a plan can ask them too."""
