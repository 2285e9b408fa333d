"""What may still change: the cluster's key-value store, progress bars."""
