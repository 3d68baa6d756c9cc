"""Several gateways on one port, in front of one owner."""
