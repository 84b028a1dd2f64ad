"""One rank that trains: the backend, the cutting of batches, the update, the warm-up."""
