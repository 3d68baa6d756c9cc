"""Commands that ask a service over HTTP: they work from any machine, and need the base install alone."""
