"""The training that `replay-trainer train` runs, on Ray Train."""
