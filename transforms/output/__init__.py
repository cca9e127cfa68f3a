"""The output folder as workers see it: `folder`, `receipts`, `json_fields`."""
