"""Which injection ratio to take: scaling laws of forgetting and of the target loss, fitted to runs. Needs scipy."""
