"""The contents of a corpus's folder: segments, their layout and strata, and the manifest that lists them."""
