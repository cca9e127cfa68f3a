"""How a job goes.

Found out by `timeline`, `examples`, `explain`, `status`, `report`; shown by `numbers`, `charts`, `page`, `prometheus`;
`schema` describes report.json.
"""
