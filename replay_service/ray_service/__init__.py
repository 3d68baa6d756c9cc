"""The service on the nodes of a Ray cluster: an actor on each starts the processes of `serve` and looks after them."""
