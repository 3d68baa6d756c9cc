"""A cluster of several hosts, as network namespaces of this machine, and what is done to them while trainers train."""
