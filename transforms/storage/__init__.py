"""Local files and objects in buckets alike: `api` over the stores `local`, `gcs`, `s3`; `base` and `chunks` for all."""
