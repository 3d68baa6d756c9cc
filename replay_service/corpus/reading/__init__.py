"""The reading side: samples by their address, from a local folder or from object storage."""
