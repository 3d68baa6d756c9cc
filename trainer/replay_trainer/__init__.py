"""What a training loop uses: pull rehearsal batches, inject them at the right ratio, report what they cost."""
