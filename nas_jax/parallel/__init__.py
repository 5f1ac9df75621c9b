"""Where batches and state live on the devices."""
