"""Files and objects alike: `api` over the stores `gcs` and `s3`; `base` for what they share."""
