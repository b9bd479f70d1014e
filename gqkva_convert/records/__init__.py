"""What lies beside weights: reports, measurements, the source's card; written and read by the same types."""
