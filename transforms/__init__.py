"""What runs on workers: records, read, embed, write; the endpoint's client is in `tei`. Never imports `pipeline`."""
