"""Local files and objects in buckets: `api` over the stores `local`, `gcs` and `s3`; `base` for what they share."""
