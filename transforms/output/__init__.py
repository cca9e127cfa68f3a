"""The output folder as workers see it: `folder`, `receipts`; `formats` and their `layout`, `values`; `json_fields`."""
