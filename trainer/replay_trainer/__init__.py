"""The library of a training loop: pull rehearsal batches, inject them at the right ratio, report their losses."""
