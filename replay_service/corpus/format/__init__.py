"""What lies in a corpus's folder: segments, their layout and strata, and the manifest that lists them."""
