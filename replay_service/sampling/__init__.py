"""The pure core: what a run rehearses in which step. numpy and the standard library only."""
