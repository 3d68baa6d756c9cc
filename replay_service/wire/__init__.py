"""What travels: Arrow streams of batches and of loss reports, and plans between processes."""
